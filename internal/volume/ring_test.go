package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/swtpm"
)

// ring is a recorded container in a plain file, of which keys are changed without root.
type ring struct {
	*Volume
	t   *testing.T
	dir string
}

// ringPassphrase opens keyslot 0, ringForeign keyslot 1, which luksmediad did not make.
const (
	ringPassphrase = "correct horse battery staple"
	ringForeign    = "somebody else's passphrase"
	ringBytes      = 20 << 20
)

// newRing has two keyslots: the recovery passphrase and a foreign one.
func newRing(t *testing.T) *ring {
	t.Helper()
	dir, err := os.MkdirTemp("", "ring") // not t.TempDir: its name may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := openRing(dir, swift{})
	r.t = t
	r.write("passphrase", ringPassphrase)
	r.write("foreign", ringForeign)
	r.must(r.formatted())
	r.must(r.saveRecord(&Record{Container: r.container(), Pin: r.header().Pin(ringBytes), Filesystem: mount.Ext4,
		Keyslots: []Keyslot{r.made(0, sourceRecovery)}, Encrypted: []EncryptedStore{}}))
	return r
}

// ringImage is a formatted container without the zeros at its end; it takes long to make.
var ringImage = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "ring")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path, first, second := filepath.Join(dir, "image"), filepath.Join(dir, "first"), filepath.Join(dir, "second")
	err = errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, ringBytes),
		os.WriteFile(first, []byte(ringPassphrase), 0o400), os.WriteFile(second, []byte(ringForeign), 0o400))
	for _, args := range [][]string{
		{"luksFormat", "--type=luks2", "--sector-size=4096", "--key-file=" + first, path},
		{"luksAddKey", "--key-slot=1", "--key-file=" + first, path, second},
	} {
		if err == nil {
			args = append([]string{"--batch-mode", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"}, args...)
			_, err = command.Runner{}.Run(context.Background(), nil, nil, "cryptsetup", args...)
		}
	}
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	return bytes.TrimRight(content, "\x00"), err
})

// formatted writes the container anew.
func (r *ring) formatted() error {
	image, err := ringImage()
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(r.container(), image, 0o600), os.Truncate(r.container(), ringBytes))
}

// openRing is the volume below dir, in whatever process. Its key file is configured.
func openRing(dir string, runner Runner) *ring {
	c := &config.Config{
		Volume: config.Volume{Name: "ring", Container: filepath.Join(dir, "ring.luks")},
		Unlock: []config.KeySource{{Keyfile: &config.Keyfile{Path: filepath.Join(dir, "key")}}},
	}
	return &ring{Volume: New(c, Paths{State: filepath.Join(dir, "state"), Runtime: dir}, runner), dir: dir}
}

// swift has cryptsetup make the keyslot of a word with the least memory, without measuring for seconds how much it could take: what that is
// by default, the tests of pkg/unlock see.
type swift struct{ command.Runner }

func (s swift) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if slices.Contains(args, string(unlock.HumanPBKDF)) {
		args = append(args, "--pbkdf-force-iterations=4", "--pbkdf-memory=32")
	}
	return s.Runner.Run(ctx, stdin, extra, name, args...)
}

func (r *ring) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *ring) path(name string) string { return filepath.Join(r.dir, name) }

func (r *ring) container() string { return r.config.Volume.Container }

func (r *ring) write(name, content string) string {
	r.t.Helper()
	r.must(os.RemoveAll(r.path(name)))
	r.must(os.WriteFile(r.path(name), []byte(content), 0o400))
	return r.path(name)
}

// run has cryptsetup itself do something.
func (r *ring) run(args ...string) string {
	r.t.Helper()
	out, err := command.Runner{}.Run(r.t.Context(), nil, nil, "cryptsetup", append([]string{"--batch-mode"}, args...)...)
	r.must(err)
	return string(out)
}

func (r *ring) addForeign(keyslot int, passphrase string) {
	r.t.Helper()
	r.run("luksAddKey", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file="+r.path("passphrase"),
		fmt.Sprintf("--key-slot=%d", keyslot), r.container(), r.write("foreign", passphrase))
}

func (r *ring) header() *luks2.Header {
	r.t.Helper()
	file, err := os.Open(r.container())
	r.must(err)
	defer file.Close()
	header, err := luks2.Read(file, ringBytes)
	r.must(err)
	r.must(header.Validate(ringBytes))
	return header
}

// made is the record of a keyslot as it is.
func (r *ring) made(keyslot int, source string) Keyslot {
	r.t.Helper()
	return Keyslot{keyslot, source, r.header().Metadata.Keyslots[keyslot].KDF.Salt}
}

// offers are the sources of one passphrase.
func offers(t *testing.T, passphrase string) []unlock.Source {
	t.Helper()
	key, err := secret.From([]byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	return []unlock.Source{unlock.Passphrase{Key: key}}
}

func (r *ring) add(wanted Enrolment, settings ...func(*AddOptions)) *AddedKey {
	r.t.Helper()
	options := AddOptions{Sources: offers(r.t, ringPassphrase)}
	for _, set := range settings {
		set(&options)
	}
	added, err := r.AddKey(r.t.Context(), wanted, options, &watcher{})
	r.must(err)
	return added
}

func replacing(options *AddOptions) { options.Replace.Superseded = true }

func (r *ring) remove(keyslot int, settings ...func(*RemoveOptions)) error {
	r.t.Helper()
	options := RemoveOptions{Keyslot: keyslot, Sources: append(offers(r.t, ringPassphrase), r.Sources()...)}
	for _, set := range settings {
		set(&options)
	}
	return r.RemoveKey(r.t.Context(), options, &watcher{})
}

// requireKeyslots wants the recorded keyslots, as "number source", each in the header, and nothing left of any change: no journal, no token
// without keyslot, a backup of the header as it is.
func (r *ring) requireKeyslots(want ...string) {
	r.t.Helper()
	record, err := r.loadRecord()
	r.must(err)
	header := r.header()
	var got []string
	for _, made := range record.Keyslots {
		got = append(got, fmt.Sprint(made.Slot, " ", made.Source))
		if _, there := header.Metadata.Keyslots[made.Slot]; !there {
			r.t.Errorf("keyslot %d is recorded and not there", made.Slot)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		r.t.Errorf("recorded %q, want %q", got, want)
	}
	for id, token := range header.Metadata.Tokens {
		if len(token.Keyslots) == 0 {
			r.t.Errorf("token %d is left without keyslot", id)
		}
	}
	if err := r.states.Load(r.keyChangeName(), keyChangeVersion, new(keyChange)); !errors.Is(err, fs.ErrNotExist) {
		r.t.Errorf("the journal is still there: %v", err)
	}
	r.requireBackup(header)
}

// requireBackup wants the saved header to be the present one.
func (r *ring) requireBackup(header *luks2.Header) {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.paths.State, headersFolder, "*"))
	r.must(err)
	if len(files) != 1 {
		r.t.Fatalf("header backups %q", files)
	}
	file, err := os.Open(files[0])
	r.must(err)
	defer file.Close()
	saved, err := luks2.Read(file, ringBytes)
	r.must(err)
	if saved.SequenceID != header.SequenceID || saved.UUID != header.UUID {
		r.t.Errorf("the backup has sequence %d, the header %d", saved.SequenceID, header.SequenceID)
	}
}

// requireInHeader wants exactly these keyslots in the header.
func (r *ring) requireInHeader(want ...int) {
	r.t.Helper()
	if got := slices.Sorted(maps.Keys(r.header().Metadata.Keyslots)); !slices.Equal(got, want) {
		r.t.Errorf("keyslots %v, want %v", got, want)
	}
}

// requireLeft wants exactly these keyslots in the header, and besides so many that an interrupted change has left.
func (r *ring) requireLeft(left int, want ...int) {
	r.t.Helper()
	got := slices.Sorted(maps.Keys(r.header().Metadata.Keyslots))
	missing := slices.ContainsFunc(want, func(keyslot int) bool { return !slices.Contains(got, keyslot) })
	if missing || len(got) != len(want)+left {
		r.t.Errorf("keyslots %v, want %v and %d more", got, want, left)
	}
}

// requireOpens has cryptsetup itself try a key file on a keyslot.
func (r *ring) requireOpens(keyslot int, path string) {
	r.t.Helper()
	r.run("open", "--test-passphrase", "--disable-external-tokens", fmt.Sprintf("--key-slot=%d", keyslot), "--key-file="+path, r.container())
}

// unseals has the TPM give the key of a keyslot's token and cryptsetup try it.
func (r *ring) unseals(tpm *swtpm.TPM, keyslot int, pin *secret.Key) error {
	r.t.Helper()
	for _, token := range r.header().Tokens(tpm2.TokenType) {
		if !slices.Equal(token.Keyslots, []int{keyslot}) {
			continue
		}
		wanted := EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PIN: pin}}
		key, err := wanted.unseal(r.t.Context(), token)
		if err != nil {
			return err
		}
		defer key.Wipe()
		return r.cryptsetup.Prove(r.t.Context(), r.container(), r.header(), key, keyslot)
	}
	return errors.New("there is no token")
}

// sum is everything that a refused command must leave as it was: container, state and key file.
func (r *ring) sum() string {
	r.t.Helper()
	var picture strings.Builder
	r.must(filepath.WalkDir(r.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintf(&picture, "%s %x\n", path, sha256.Sum256(content))
		return err
	}))
	return picture.String()
}

func requireStep(t *testing.T, err error, step Step, class error) {
	t.Helper()
	failed, ok := errors.AsType[*StepError](err)
	if !ok || failed.Step != step || !errors.Is(err, class) {
		t.Errorf("%v instead of %v in step %s", err, class, step)
	}
}

// reliveKeys changes the keys of the ring below folder, as words say: "add", "recovery", "replace SOCKET",
// "reseal SOCKET", "remove N".
func reliveKeys(words, folder string, c *crasher) error {
	c.before = true
	r := openRing(folder, c)
	key, err := secret.From([]byte(ringPassphrase))
	if err != nil {
		return err
	}
	sources := []unlock.Source{unlock.Passphrase{Key: key}}
	what, argument, _ := strings.Cut(words, " ")
	switch what {
	case "add":
		_, err = r.AddKey(context.Background(), EnrolKeyFile{Path: r.path("key")}, AddOptions{Sources: sources}, c)
	case "recovery":
		_, err = r.AddKey(context.Background(), EnrolRecovery{Deliver: func(*secret.Key) error { return nil }}, AddOptions{Sources: sources}, c)
	case "replace":
		_, err = r.AddKey(context.Background(), EnrolTPM2{Device: argument}, AddOptions{Sources: sources, Replace: Replacement{Superseded: true}}, c)
	case "reseal":
		err = r.reseal(argument, key, c)
	case "remove":
		var keyslot int
		if _, err := fmt.Sscan(argument, &keyslot); err != nil {
			return err
		}
		err = r.RemoveKey(context.Background(), RemoveOptions{Keyslot: keyslot, Sources: sources}, c)
	}
	return err
}

// reseal does what an opening by the passphrase does once the container is open.
func (r *ring) reseal(socket string, key *secret.Key, observer Observer) error {
	o, err := r.opening(socket, observer)
	if err != nil {
		return err
	}
	defer o.container.Close()
	o.endKeyChange(context.Background())
	o.reseal(context.Background(), key)
	return nil
}

// opening is one by the passphrase, with a TPM at socket that has refused.
func (r *ring) opening(socket string, observer Observer) (*opening, error) {
	r.config.Unlock = append(r.config.Unlock, config.KeySource{TPM2: &config.TPM2{Device: socket, Reseal: true}})
	record, err := r.loadRecord()
	if err != nil {
		return nil, err
	}
	container, err := openContainer(r.container(), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	header, err := readValid(container)
	if err != nil {
		return nil, errors.Join(err, container.Close())
	}
	return &opening{Volume: r.Volume, attached: attached{container, &backing{path: r.container()}}, observer: observer,
		opened: Opened{Record: record, Header: header, Source: sourcePassphrase, Keyslot: 0}}, nil
}

func newSecret(t *testing.T, text string) *secret.Key {
	t.Helper()
	key, err := secret.New(len(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Wipe)
	copy(key.Bytes(), text)
	return key
}
