//go:build kernel

package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/extents"
	"luksmediad/test/swtpm"
)

// foreign is a container that other programs have made.
type foreign struct {
	// size is none where the container is a device.
	size, luks, mkfs []string
	fill             func(*site, string)
}

const foreignPassphrase = "a foreign key" // as site.format has it

func foreignExt4(options ...string) foreign {
	return foreign{size: []string{"64MiB"}, luks: []string{"--sector-size", "4096"},
		mkfs: append([]string{"mke2fs", "-q", "-t", "ext4", "-E", "nodiscard"}, options...)}
}

func (f foreign) with(fill func(*site, string)) foreign {
	f.fill = fill
	return f
}

// fillRoot puts Synapse's files into the root of the filesystem.
func fillWithFiles(folder string) func(*site, string) {
	return func(s *site, root string) {
		at := filepath.Join(root, folder)
		s.must(os.MkdirAll(filepath.Join(at, "local_content"), 0o750))
		s.write(filepath.Join(at, "local_content", "picture"), "moved")
		s.write(filepath.Join(at, "other"), "moved too")
	}
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// make makes and fills the container, by cryptsetup, mkfs and mount.
func (f foreign) make(s *site) {
	s.t.Helper()
	if f.size != nil {
		s.run("fallocate", "--length", f.size[0], s.container)
	}
	key := s.container + ".key"
	s.write(key, foreignPassphrase)
	s.run("cryptsetup", append([]string{"luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", key, s.container}, f.luks...)...)
	if f.mkfs == nil {
		return
	}
	s.run("cryptsetup", "open", "--key-file", key, s.container, "foreign")
	s.run(f.mkfs[0], append(f.mkfs[1:], "/dev/mapper/foreign")...)
	root := filepath.Join(s.dir, "foreign")
	s.mkdir(root)
	s.run("mount", "/dev/mapper/foreign", root)
	if f.fill != nil {
		f.fill(s, root)
	}
	s.run("umount", root)
	s.remove(root)
	s.run("cryptsetup", "close", "foreign")
}

// makeFilled makes a container with files in its root, made once.
func (s *site) makeFilled() {
	s.t.Helper()
	kept := template("filled.luks")
	if _, err := os.Stat(kept); err != nil {
		foreignExt4().with(fillWithFiles(".")).make(s)
		s.must(extents.Copy(s.container, kept))
		return
	}
	s.must(extents.Copy(kept, s.container))
	s.write(s.container+".key", foreignPassphrase)
}

func (s *site) passphrase(text string) []unlock.Source {
	s.t.Helper()
	key, err := secret.From([]byte(text))
	s.must(err)
	return []unlock.Source{unlock.Passphrase{Key: key}}
}

func (s *site) adopt(stores map[string]string) error {
	s.t.Helper()
	_, err := s.Adopt(s.t.Context(), AdoptOptions{Sources: s.passphrase(foreignPassphrase), Stores: stores}, &watcher{})
	return err
}

// requireAdopted wants a volume that opens by what opened it before, with the store's files.
func (s *site) requireAdopted(files map[string]string) {
	s.t.Helper()
	s.requireClosed()
	s.requireGuarded(s.Root(), s.store)
	if err := s.states.Load(s.adoptionName(), adoptionVersion, new(adoption)); !errors.Is(err, fs.ErrNotExist) {
		s.t.Errorf("the journal is still there: %v", err)
	}
	opened, err := s.Open(s.t.Context(), s.passphrase(foreignPassphrase), &watcher{})
	s.must(err)
	if opened.Source != "passphrase" || len(opened.Record.Keyslots) != 0 {
		s.t.Errorf("opened %+v", opened)
	}
	s.requireOpen()
	for name, content := range files {
		s.requireContent(filepath.Join(s.store, name), content)
	}
	s.close()
	s.requireClosed()
}

func TestAdoptContainer(t *testing.T) {
	moved := map[string]string{"local_content/picture": "moved", "other": "moved too"}
	for name, test := range map[string]struct {
		container foreign
		stores    map[string]string
		files     map[string]string
		settings  func(*config.Config)
	}{
		"empty":     {foreignExt4(), nil, nil, nil},
		"root":      {foreignExt4().with(fillWithFiles(".")), map[string]string{"media": "."}, moved, nil},
		"directory": {foreignExt4().with(fillWithFiles("synapse/media")), map[string]string{"media": "synapse/media"}, moved, nil},
		"store":     {foreignExt4().with(fillWithFiles("stores/media")), nil, moved, nil},
		// Blocks smaller than those of the loop device that our own containers have: neither could be mounted on one of 4096.
		"ext4 of 1024 on 512": {foreign{[]string{"64MiB"}, []string{"--sector-size", "512"},
			[]string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-E", "nodiscard"}, fillWithFiles(".")}, map[string]string{"media": "."}, moved, nil},
		"xfs of 512 on 512": {foreign{[]string{"320MiB"}, []string{"--sector-size", "512"}, []string{"mkfs.xfs", "-q", "-K"}, fillWithFiles(".")},
			map[string]string{"media": "."}, moved, withXFS},
		"no whole block": {foreign{[]string{"67109376"}, []string{"--sector-size", "512"},
			[]string{"mke2fs", "-q", "-t", "ext4", "-E", "nodiscard"}, fillWithFiles(".")}, map[string]string{"media": "."}, moved, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var settings []func(*config.Config)
			if test.settings != nil {
				settings = append(settings, test.settings)
			}
			s := newSite(t, settings...)
			test.container.make(s)
			s.must(s.adopt(test.stores))
			s.requireAdopted(test.files)
			s.requireError(s.adopt(nil), StepPreflight, ErrAlreadySetUp)
		})
	}
}

// A token of systemd opens at once, and stays foreign.
func TestAdoptEnrolled(t *testing.T) {
	s, tpm := newSite(t), swtpm.Start(t)
	foreignExt4().make(s)
	tpm.Extend(7, "boot")
	s.run("systemd-cryptenroll", "--unlock-key-file="+s.container+".key", "--tpm2-device="+tpm.TCTI(), "--tpm2-pcrs=7", s.container)
	tpm.Restart() // systemd 252 leaves its sessions in a TPM that has no resource manager
	tpm.Extend(7, "boot")
	s.config.Unlock = []config.KeySource{{TPM2: &config.TPM2{Device: tpm.TCTI()}}}
	_, err := s.Adopt(t.Context(), AdoptOptions{Sources: s.Sources()}, &watcher{})
	s.must(err)
	opened := s.open()
	if opened.Source != sourceTPM2 || opened.Keyslot != 1 {
		t.Errorf("opened by %s, keyslot %d", opened.Source, opened.Keyslot)
	}
	// Also while it is open: a key of its own, and then the foreign one goes if it is said.
	added, err := s.AddKey(t.Context(), EnrolTPM2{Device: tpm.TCTI()}, AddOptions{Sources: s.Sources()}, &watcher{})
	s.must(err)
	s.requireError(s.RemoveKey(t.Context(), RemoveOptions{Keyslot: 1, Sources: s.Sources()}, &watcher{}), StepProve, ErrKeyslotForeign)
	s.must(s.RemoveKey(t.Context(), RemoveOptions{Keyslot: 1, Foreign: true, Sources: s.Sources()}, &watcher{}))
	// Whoever reads the loop device sees it too.
	if dump := s.run("cryptsetup", "luksDump", opened.Backing); !strings.Contains(dump, "  "+strconv.Itoa(added.Keyslot)+": luks2") || strings.Contains(dump, "  1: luks2") {
		t.Errorf("%s shows %s", opened.Backing, dump)
	}
	s.requireOpen()
	s.close()
	if opened := s.open(); opened.Keyslot != added.Keyslot {
		t.Errorf("opened by keyslot %d", opened.Keyslot)
	}
}

// adoptRefusal is what stands in the way of an adoption.
type adoptRefusal struct {
	spoil  func(*site)
	stores map[string]string
	step   Step
	class  error
	// touched: the filesystem was mounted for a look.
	touched bool
}

func TestAdoptRefuses(t *testing.T) {
	ready := func(then func(*site)) func(*site) { return func(s *site) { s.makeFilled(); then(s) } }
	whole := map[string]string{"media": "."}
	for name, refusal := range map[string]adoptRefusal{
		"nothing there": {func(*site) {}, whole, StepContainer, ErrContainerMissing, false},
		"sparse":        {ready((*site).punch), whole, StepContainer, ErrContainerSparse, false},
		"LUKS1": {func(s *site) {
			foreign{size: []string{"64MiB"}, luks: []string{"--type", "luks1"}}.make(s)
		}, whole, StepContainer, luks2.ErrLUKS1, false},
		"discards": {ready(func(s *site) {
			s.run("cryptsetup", "open", "--key-file", s.container+".key", "--allow-discards", "--persistent", s.container, "elsewhere")
			s.run("cryptsetup", "close", "elsewhere")
		}), whole, StepContainer, luks2.ErrRefused, false},
		"being reencrypted": {ready(func(s *site) {
			s.run("cryptsetup", "reencrypt", "--init-only", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", s.container+".key", s.container)
		}), whole, StepContainer, luks2.ErrRefused, false},
		// fault 50
		"header damaged": {ready(func(s *site) { s.overwrite(0, 512) }), whole, StepContainer, ErrHeaderDamaged, false},
		"wrong key": {ready(func(s *site) {
			s.run("cryptsetup", "luksChangeKey", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", s.container+".key", s.container, s.otherKey())
		}), whole, StepProve, unlock.ErrNoKeyFits, false},
		"no filesystem":   {func(s *site) { foreign{size: []string{"64MiB"}}.make(s) }, whole, StepCheck, ErrFilesystemForeign, false},
		"store not empty": {ready(func(s *site) { s.mkdir(s.store); s.write(filepath.Join(s.store, "picture"), "clear") }), whole, StepPreflight, ErrStoreNotEmpty, false},
		"no such store":   {ready(func(*site) {}), map[string]string{"films": "."}, StepPreflight, ErrStoreDirectory, false},
		"open elsewhere": {ready(func(s *site) {
			s.run("cryptsetup", "open", "--key-file", s.container+".key", s.container, "elsewhere")
			s.t.Cleanup(func() { s.run("cryptsetup", "close", "elsewhere") })
		}), whole, StepUnlock, ErrContainerShared, false},
		"nobody said":    {ready(func(*site) {}), nil, StepStores, ErrStoreUnclaimed, true},
		"no directory":   {ready(func(*site) {}), map[string]string{"media": "films"}, StepStores, ErrStoreDirectory, true},
		"outside":        {ready(func(*site) {}), map[string]string{"media": "../.."}, StepStores, ErrStoreDirectory, true},
		"a file":         {ready(func(*site) {}), map[string]string{"media": "other"}, StepStores, ErrStoreDirectory, true},
		"its own stores": {func(s *site) { foreignExt4().with(fillWithFiles("stores")).make(s) }, whole, StepStores, ErrStoreDirectory, true},
		"link for stores": {func(s *site) {
			foreignExt4().with(func(s *site, root string) { s.link("/etc", filepath.Join(root, "stores")) }).make(s)
		}, whole, StepStores, ErrFilesystemForeign, true},
		"link for ours": {func(s *site) {
			foreignExt4().with(func(s *site, root string) { s.link("/etc", filepath.Join(root, ".luksmediad")) }).make(s)
		}, whole, StepStores, ErrFilesystemForeign, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			refusal.spoil(s)
			before := s.pictureWithout(refusal.touched)
			s.requireError(s.adopt(refusal.stores), refusal.step, refusal.class)
			if after := s.pictureWithout(refusal.touched); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// pictureWithout leaves the container out where mounting has changed it.
func (s *site) pictureWithout(container bool) string {
	var lines []string
	for line := range strings.Lines(s.picture()) {
		if !container || !strings.HasPrefix(line, s.container+" ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

func (s *site) otherKey() string {
	path := filepath.Join(s.dir, "other.key")
	s.write(path, "nobody knows")
	return path
}

// A look changes nothing and says what would be refused.
func TestAdoptDryRun(t *testing.T) {
	s := newSite(t)
	s.makeFilled()
	before, content := s.pictureWithout(true), s.contentOf(s.container)
	for stores, class := range map[string]error{"": ErrStoreUnclaimed, ".": nil} {
		options := AdoptOptions{Sources: s.passphrase(foreignPassphrase), DryRun: true}
		if stores != "" {
			options.Stores = map[string]string{"media": stores}
		}
		if _, err := s.Adopt(t.Context(), options, &watcher{}); !errors.Is(err, class) {
			t.Errorf("%q: %v", stores, err)
		}
	}
	if after := s.pictureWithout(true); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if s.contentOf(s.container) != content {
		t.Error("the container has changed")
	}
	s.must(s.adopt(map[string]string{"media": "."}))
}

func (s *site) contentOf(path string) [sha256.Size]byte {
	s.t.Helper()
	sum, err := extents.Sum(path)
	s.must(err)
	return sum
}

// A volume whose state folder is lost is taken over again as it is, marker and all.
func TestAdoptOwnAgain(t *testing.T) {
	s := newCreated(t)
	before, err := s.loadRecord()
	s.must(err)
	s.open()
	s.write(filepath.Join(s.store, "picture"), "kept")
	s.close()
	s.must(os.RemoveAll(s.paths.State))
	_, err = s.Adopt(t.Context(), AdoptOptions{Sources: s.Sources()}, &watcher{})
	s.must(err)
	after, err := s.loadRecord()
	s.must(err)
	if after.Marker != before.Marker || after.Pin != before.Pin || after.FilesystemUUID != before.FilesystemUUID {
		t.Errorf("was %+v, is %+v", before, after)
	}
	s.open()
	s.requireContent(filepath.Join(s.store, "picture"), "kept")
}

// What the mount points were is known to the next adoption, which gives them back if it fails.
func TestAdoptRestoresAfterCrash(t *testing.T) {
	s := newSite(t)
	foreignExt4().with(fillWithFiles("stores/media")).make(s)
	s.mkdir(s.store)
	s.must(os.Chown(s.store, 991, 992))
	s.chmod(s.store, 0o750)
	describe := func() string { return s.run("stat", "--format", "%i %a %u:%g", s.store) }
	before := describe()
	place := s.crashAt("adopt untold", string(StepRecord))
	if place == "" || describe() == before {
		t.Fatalf("killed at %q, the store is as it was: %s", place, describe())
	}
	healthy := s.Volume
	s.Volume = New(s.config, s.paths, unwritten{})
	s.requireError(s.adopt(nil), StepRecord, unix.EINVAL)
	if after := describe(); after != before {
		t.Errorf("the store was %s and is %s", before, after)
	}
	s.write(filepath.Join(s.store, "picture"), "in clear text") // it is not immutable
	s.remove(filepath.Join(s.store, "picture"))
	s.Volume = healthy
	s.must(s.adopt(nil))
	s.requireAdopted(map[string]string{"other": "moved too"})
}

// readopt adopts, with what lies in the root as the store or what has been one.
func readopt(s *site, stores map[string]string, observer Observer) error {
	key, err := secret.From([]byte(foreignPassphrase))
	if err != nil {
		return err
	}
	_, err = s.Adopt(context.Background(), AdoptOptions{Sources: []unlock.Source{unlock.Passphrase{Key: key}}, Stores: stores}, observer)
	return err
}

// Two stores of one volume: one directory, and the rest.
func TestAdoptTwoStores(t *testing.T) {
	s := newSite(t, withSecondStore)
	foreignExt4().with(func(s *site, root string) {
		fillWithFiles(".")(s, root)
		s.must(os.MkdirAll(filepath.Join(root, "faces"), 0o750))
		s.write(filepath.Join(root, "faces", "face"), "a face")
	}).make(s)
	// What is said to be one store is in the way of no new one.
	_, err := s.Adopt(t.Context(), AdoptOptions{Sources: s.passphrase(foreignPassphrase), Stores: map[string]string{"media": "."}, DryRun: true}, &watcher{})
	s.must(err)
	s.must(s.adopt(map[string]string{"media": ".", "avatars": "faces"}))
	s.must(errors.Join(func() error { _, err := s.Open(t.Context(), s.passphrase(foreignPassphrase), &watcher{}); return err }()))
	s.requireContent(filepath.Join(s.store, "other"), "moved too")
	s.requireContent(filepath.Join(s.store+"-2", "face"), "a face")
	if _, err := os.Lstat(filepath.Join(s.store, "faces")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("faces are in two places: %v", err)
	}
}

// accepting answers the question and remembers what was shown.
func (s *site) accept(sources []unlock.Source, answer error) (shown []string, err error) {
	s.t.Helper()
	w := &watcher{}
	_, err = s.AcceptPin(s.t.Context(), AcceptOptions{Sources: sources, Confirm: func(report *PinReport) error {
		if !report.Looked && slices.Contains(w.steps, StepProve) {
			s.t.Error("the container is opened before anybody was asked")
		}
		shown = nil
		for _, difference := range report.Differences {
			shown = append(shown, difference.Field)
		}
		return answer
	}}, w)
	return shown, err
}

func TestAcceptGrown(t *testing.T) {
	s := newCreated(t)
	s.lengthen()
	s.refusesOpen(StepHeader, luks2.ErrPinMismatch)
	report, err := s.ComparePin()
	s.must(err)
	if len(report.Differences) != 1 || report.Differences[0].Field != "container_bytes" || report.Looked {
		t.Errorf("%+v", report)
	}
	shown, err := s.accept(s.Sources(), ErrConfirmation)
	s.requireError(err, StepCompare, ErrConfirmation)
	if !slices.Equal(shown, []string{"container_bytes"}) {
		t.Errorf("shown %q", shown)
	}
	s.requireClosed()
	s.refusesOpen(StepHeader, luks2.ErrPinMismatch)

	_, err = s.accept(s.Sources(), nil)
	s.must(err)
	s.requireClosed()
	s.open()
	s.requireOpen()
	if shown, err := s.accept(s.Sources(), ErrConfirmation); shown != nil || err != nil {
		t.Errorf("nothing differs: shown %q, %v", shown, err)
	}
	s.requireOpen() // it was open
	report, err = s.ComparePin()
	if err != nil || !report.Looked || len(report.Differences) != 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// It grew while it was open, and stays so.
func TestAcceptWhileOpen(t *testing.T) {
	s := newCreated(t)
	s.open()
	s.lengthen()
	shown, err := s.accept(s.Sources(), nil)
	s.must(err)
	if !slices.Equal(shown, []string{"container_bytes"}) {
		t.Errorf("shown %q", shown)
	}
	s.requireOpen()
	s.close()
	s.open()
	s.requireOpen()
}

// Another container in its place: everything is shown, its stores must be there, and none of its keys is ours.
func TestAcceptAnother(t *testing.T) {
	s := newCreated(t)
	s.remove(s.container)
	foreignExt4().with(fillWithFiles("stores/media")).make(s)
	_, err := s.accept(s.Sources(), nil)
	s.requireError(err, StepProve, unlock.ErrNoKeyFits)
	shown, err := s.accept(s.passphrase(foreignPassphrase), nil)
	s.must(err)
	if !slices.Equal(shown, []string{"uuid", "volume_key_digest", "filesystem_uuid", "marker"}) {
		t.Errorf("shown %q", shown)
	}
	record, err := s.loadRecord()
	s.must(err)
	if len(record.Keyslots) != 0 || len(record.Marker) != 36 {
		t.Errorf("recorded %+v", record)
	}
	s.requireAdopted(map[string]string{"other": "moved too"})
}

func TestAcceptRefuses(t *testing.T) {
	for name, refusal := range map[string]struct {
		spoil func(*site)
		step  Step
		class error
	}{
		"truncated":      {func(s *site) { s.truncate(48 << 20) }, StepCheck, nil},
		"sparse":         {(*site).punch, StepContainer, ErrContainerSparse},
		"header damaged": {func(s *site) { s.overwrite(0, 512) }, StepContainer, ErrHeaderDamaged},
		"no stores":      {func(s *site) { s.remove(s.container); foreignExt4().make(s) }, StepCompare, ErrFilesystemForeign},
		"no filesystem":  {func(s *site) { s.remove(s.container); foreign{size: []string{"64MiB"}}.make(s) }, StepCheck, ErrFilesystemForeign},
	} {
		t.Run(name, func(t *testing.T) {
			s := newCreated(t)
			refusal.spoil(s)
			before, err := s.loadRecord()
			s.must(err)
			sources := append(s.Sources(), s.passphrase(foreignPassphrase)...)
			_, err = s.accept(sources, nil)
			if refusal.class != nil {
				s.requireError(err, refusal.step, refusal.class)
			} else if err == nil {
				t.Error("accepted")
			}
			s.requireClosed()
			if after, err := s.loadRecord(); err != nil || after.Pin != before.Pin || after.Marker != before.Marker {
				t.Errorf("recorded %+v, %v", after, err)
			}
		})
	}
}

// withReseal tries a TPM, bound to PCR 7, before the key file.
func (s *site) withReseal(tpm *swtpm.TPM) {
	source := config.KeySource{TPM2: &config.TPM2{Device: tpm.TCTI(), PCRs: []int{7}, Reseal: true}}
	s.config.Unlock = append([]config.KeySource{source}, s.config.Unlock...)
}

// reopen closes and opens, and tells by what and what was said.
func (s *site) reopen() (*Opened, *watcher) {
	s.t.Helper()
	s.close()
	w := &watcher{}
	opened, err := s.Open(s.t.Context(), s.Sources(), w)
	s.must(err)
	s.requireOpen()
	return opened, w
}

// faults 41 and 43: once another source has opened the volume the TPM gets a new key, and gives it from then on: after PCRs have changed, and in
// another TPM.
func TestReseal(t *testing.T) {
	s, tpm := newSite(t), swtpm.Start(t)
	s.withReseal(tpm)
	tpm.Extend(7, "boot")
	s.create()
	s.open()
	for name, change := range map[string]func(){
		"PCR": func() { tpm.Extend(7, "update") },
		"TPM": func() { tpm.Replace(); tpm.Extend(7, "boot") },
	} {
		if opened, w := s.reopen(); opened.Source != sourceTPM2 || slices.Contains(w.events, journal.Resealed) {
			t.Errorf("before %s changes: opened by %s, events %v", name, opened.Source, w.events)
		}
		change()
		opened, w := s.reopen()
		at := slices.Index(w.events, journal.Resealed)
		if opened.Source != sourceKeyFile || at < 0 {
			t.Fatalf("after %s has changed: opened by %s, events %v", name, opened.Source, w.events)
		}
		requirePolicies(t, w.fields[at])
		if tokens := opened.Header.Metadata.Tokens; len(tokens) != 2 { // recovery and TPM
			t.Errorf("tokens %v", tokens)
		}
	}
	if opened, _ := s.reopen(); opened.Source != sourceTPM2 {
		t.Errorf("opened by %s", opened.Source)
	}
	record, err := s.loadRecord()
	s.must(err)
	if len(record.Keyslots) != 3 {
		t.Errorf("recorded %v", record.Keyslots)
	}
	backups, err := filepath.Glob(filepath.Join(s.paths.State, headersFolder, "*"))
	if err != nil || len(backups) != 1 {
		t.Errorf("header backups %v, %v", backups, err)
	}
}

func requirePolicies(t *testing.T, fields []journal.Field) {
	t.Helper()
	for _, policy := range []string{"OLD_POLICY", "NEW_POLICY"} {
		if text := fmt.Sprint(fields); !regexp.MustCompile(`\{` + policy + ` [0-9a-f]{64}\}`).MatchString(text) {
			t.Errorf("no %s in %s", policy, text)
		}
	}
}

// A sealing anew that was stopped behind its record is ended by the next opening, be it of what is open already.
func TestResealIsEnded(t *testing.T) {
	for name, end := range map[string]func(*site) *Opened{
		"at the next boot":   func(s *site) *Opened { opened, _ := s.reopen(); return opened },
		"by the next daemon": (*site).open,
	} {
		t.Run(name, func(t *testing.T) {
			s, tpm := newSite(t), swtpm.Start(t)
			s.withReseal(tpm)
			tpm.Extend(7, "boot")
			s.create()
			tpm.Extend(7, "update")
			s.cryptsetup.Runner = unkilling{}
			if tokens := s.open().Header.Tokens(tpm2.TokenType); len(tokens) != 1 {
				t.Fatalf("the opening has %d TPM tokens", len(tokens))
			}
			s.cryptsetup.Runner = s.runner
			tokens := end(s).Header.Tokens(tpm2.TokenType)
			if record, err := s.loadRecord(); err != nil || len(tokens) != 1 || len(record.Keyslots) != 3 || !record.has(tokens[0].Keyslots[0]) {
				t.Errorf("tokens %v, recorded %v, %v", tokens, record, err)
			}
			if opened, _ := s.reopen(); opened.Source != sourceTPM2 {
				t.Errorf("opened by %s", opened.Source)
			}
		})
	}
}

// unkilling removes no keyslot.
type unkilling struct{ command.Runner }

func (u unkilling) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if args[0] == "luksKillSlot" {
		return nil, errors.New("signal: killed")
	}
	return u.Runner.Run(ctx, stdin, extra, name, args...)
}

// By hand as well: the passphrase opens the mapping in a process of its own.
func TestResealByPassphrase(t *testing.T) {
	s, tpm := newSite(t), swtpm.Start(t)
	s.withReseal(tpm)
	tpm.Extend(7, "boot")
	s.create()
	tpm.Extend(7, "update")
	w := &watcher{}
	s.must(s.OpenMapping(t.Context(), s.passphrase(s.recovery), w))
	if !slices.Contains(w.events, journal.Resealed) {
		t.Errorf("events %v", w.events)
	}
	s.open()
	if opened, _ := s.reopen(); opened.Source != sourceTPM2 {
		t.Errorf("opened by %s", opened.Source)
	}
}

// Whatever goes wrong, the volume is open and its keys are as they were; and without the setting nothing is tried.
func TestResealFails(t *testing.T) {
	s, tpm := newSite(t), swtpm.Start(t)
	s.withReseal(tpm)
	tpm.Extend(7, "boot")
	s.create()
	header := s.header()
	for _, test := range []struct {
		name        string
		spoil, mend func()
		said        bool
	}{
		// A PCR that nothing was measured into is not bound to.
		{"PCR unused", tpm.Restart, func() {}, true},
		{"TPM gone", tpm.PowerCut, tpm.Restart, false},
		{"header damaged", func() { tpm.Extend(7, "update"); s.overwrite(0, 512) }, func() { s.writeHeader(header) }, true},
		{"not wanted", func() { s.config.Unlock[0].TPM2.Reseal = false }, func() {}, false},
	} {
		test.spoil()
		before := s.header()
		w := &watcher{}
		opened, err := s.Open(t.Context(), s.Sources(), w)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		s.requireOpen()
		if opened.Source != sourceKeyFile || slices.Contains(w.events, journal.Resealed) || slices.Contains(w.events, journal.ResealFailed) != test.said {
			t.Errorf("%s: opened by %s, events %v", test.name, opened.Source, w.events)
		}
		if !bytes.Equal(s.header(), before) {
			t.Errorf("%s: the header has changed", test.name)
		}
		s.close()
		test.mend()
	}
}

const headerBytes = 16 << 20

func (s *site) header() []byte {
	s.t.Helper()
	file, err := os.Open(s.container)
	s.must(err)
	defer file.Close()
	header := make([]byte, headerBytes)
	_, err = io.ReadFull(file, header)
	s.must(err)
	return header
}

func (s *site) writeHeader(header []byte) {
	s.t.Helper()
	file, err := os.OpenFile(s.container, os.O_WRONLY, 0)
	s.must(err)
	defer file.Close()
	_, err = file.Write(header)
	s.must(errors.Join(err, file.Sync()))
}
