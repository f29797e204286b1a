package volume

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/internal/command"
	"luksmediad/internal/state"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// look is what CheckHeader says of the container as it is.
func (r *ring) look() error {
	r.t.Helper()
	file, err := os.Open(r.container())
	r.must(err)
	defer file.Close()
	info, err := file.Stat()
	r.must(err)
	text, err := r.CheckHeader(file, info.Size())
	if (err == nil) != strings.HasPrefix(text, "as recorded: ") {
		r.t.Errorf("%q, %v", text, err)
	}
	return err
}

func (r *ring) requireLook(want error) {
	r.t.Helper()
	if err := r.look(); !errors.Is(err, want) {
		r.t.Errorf("got %v, want %v", err, want)
	}
}

// backUp is what luksmediad header backup does.
func (r *ring) backUp() {
	r.t.Helper()
	path, err := r.BackUpHeader(r.t.Context())
	r.must(err)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
		r.t.Errorf("copy of the header: %v, %v", info, err)
	}
}

// What is in the header without luksmediad having put it there is told from what was there when the header was last recorded.
func TestCheckHeader(t *testing.T) {
	r := newRing(t)
	r.requireLook(ErrBackupMissing)
	r.backUp()
	r.requireLook(nil)

	r.addForeign(5, "one more")
	r.requireLook(ErrKeyslotUnknown)
	// A change of other keys does not make it known.
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.requireLook(ErrKeyslotUnknown)
	r.run("luksKillSlot", "--key-file="+r.path("passphrase"), r.container(), "5")
	r.requireLook(ErrBackupOld)
	r.backUp()
	r.requireLook(nil)

	r.add(EnrolRecovery{Deliver: func(*secret.Key) error { return nil }})
	r.requireLook(nil)
	r.must(r.remove(3))
	r.requireLook(nil)

	r.run("token", "import", "--json-file="+r.write("token", `{"type":"clevis","keyslots":["1"],"jwe":{}}`), r.container())
	r.requireLook(ErrTokenUnknown)
	r.backUp()
	r.requireLook(nil)

	// The keyslot that luksmediad made is somebody else's now.
	r.run("luksKillSlot", "--key-file="+r.path("passphrase"), r.container(), "2")
	r.requireLook(ErrKeyslotMissing)
	r.addForeign(2, "in its place")
	r.requireLook(ErrKeyslotUnknown)
}

// fault 50: a damaged copy, fault 51: both, and copies of the header that are none.
func TestCheckHeaderDamage(t *testing.T) {
	r := newRing(t)
	r.backUp()
	path := r.backupPath(r.header().UUID)
	r.must(os.Chmod(path, 0o600))
	r.must(os.Truncate(path, 4096))
	r.requireLook(ErrBackupMissing)
	r.must(os.Remove(path))
	r.requireLook(ErrBackupMissing)
	r.backUp()

	r.scribble(100)
	r.requireLook(ErrHeaderDamaged)
	if _, err := r.BackUpHeader(t.Context()); !errors.Is(err, ErrHeaderDamaged) {
		t.Errorf("a damaged header was copied: %v", err)
	}
	r.scribble(16384 + 100)
	r.requireLook(luks2.ErrDamaged)
}

// What has rotted in a keyslot is seen, and takes the place of no copy: with the copy the container opens again.
func TestKeyslotRots(t *testing.T) {
	r := newRing(t)
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.backUp()
	before := r.header()
	restore := r.snapshot()
	rot := func(keyslot int) {
		t.Helper()
		restore()
		r.overwrite(before.Metadata.Keyslots[keyslot].Area.Offset+8192, make([]byte, 4096))
		r.requireLook(ErrKeyslotDamaged)
	}
	kept := func() string {
		t.Helper()
		content, err := os.ReadFile(r.HeaderCopy())
		r.must(err)
		return string(content)
	}
	good := kept()
	rot(0)
	for name, change := range map[string]func() error{
		"header backup": func() error { _, err := r.BackUpHeader(t.Context()); return err },
		"key add": func() error {
			_, err := r.AddKey(t.Context(), EnrolPassphrase{Key: newSecret(t, "another")}, AddOptions{Sources: offers(t, ringForeign)}, &watcher{})
			return err
		},
		"key remove": func() error {
			return r.remove(2, func(options *RemoveOptions) { options.Sources = offers(t, ringForeign) })
		},
	} {
		if err := change(); !errors.Is(err, ErrKeyslotDamaged) || !strings.Contains(err.Error(), "keyslot 0 of") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.requireKeyslots("0 recovery", "2 keyfile")
	if kept() != good {
		t.Error("the copy that opens was overwritten")
	}
	r.run("luksHeaderRestore", "--header-backup-file="+r.HeaderCopy(), r.container())
	r.requireLook(nil)
	r.requireOpens(0, r.path("passphrase"))

	// One that goes may be damaged.
	rot(2)
	r.must(r.remove(2))
	r.requireLook(nil)

	// Where it is the copy that has rotted, another takes its place once that is away.
	restore()
	damaged := []byte(good)
	copy(damaged[before.Metadata.Keyslots[1].Area.Offset:], make([]byte, 4096))
	path := r.HeaderCopy()
	r.must(errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, damaged, 0o600)))
	r.requireLook(ErrKeyslotDamaged)
	r.must(os.Remove(path))
	r.backUp()
	r.requireLook(nil)
}

// What was damaged only after the change has begun is not copied either.
func TestKeyslotRotsMeanwhile(t *testing.T) {
	r := newRing(t)
	r.backUp()
	area := r.header().Metadata.Keyslots[1].Area
	rotting := openRing(r.dir, rots{at: area.Offset + 8192, path: r.container()})
	if _, err := rotting.BackUpHeader(t.Context()); !errors.Is(err, ErrKeyslotDamaged) {
		t.Error(err)
	}
	r.requireBackup(r.header())
	r.requireLook(ErrKeyslotDamaged)
}

// A change that is taken back while another keyslot is damaged leaves the copy before, and keeps no later change from being made: that
// keyslot can be removed.
func TestKeyslotRotsWhileAnotherIsTakenBack(t *testing.T) {
	r := newRing(t)
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.backUp()
	area := r.header().Metadata.Keyslots[2].Area
	_, err := r.AddKey(t.Context(), EnrolRecovery{Deliver: func(*secret.Key) error {
		r.overwrite(area.Offset+8192, make([]byte, 4096))
		return ErrConfirmation
	}}, AddOptions{Sources: offers(t, ringPassphrase)}, &watcher{})
	if requireStep(t, err, StepKeys, ErrConfirmation); errors.Is(err, ErrKeyslotDamaged) {
		t.Error(err)
	}
	r.requireInHeader(0, 1, 2)
	r.requireLook(ErrKeyslotDamaged)
	r.must(r.remove(2))
	r.requireInHeader(0, 1)
	r.requireLook(nil)
}

// rots damages the container before its header is copied.
type rots struct {
	command.Runner
	at   int64
	path string
}

func (b rots) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if args[0] == "luksHeaderBackup" {
		file, err := os.OpenFile(b.path, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if _, err := file.WriteAt(make([]byte, 512), b.at); err != nil {
			return nil, err
		}
	}
	return b.Runner.Run(ctx, stdin, extra, name, args...)
}

// A copy without some of the keyslots is none.
func TestBackupIsShort(t *testing.T) {
	r := newRing(t)
	r.backUp()
	area := r.header().Metadata.Keyslots[1].Area
	r.must(os.Chmod(r.HeaderCopy(), 0o600))
	r.must(os.Truncate(r.HeaderCopy(), area.Offset+4096))
	r.requireLook(ErrBackupMissing)
	r.backUp()
	r.requireLook(nil)
}

// badSector cannot be read at one offset.
type badSector struct {
	io.ReaderAt
	at int64
}

func (b badSector) ReadAt(into []byte, offset int64) (int, error) {
	if offset <= b.at && b.at < offset+int64(len(into)) {
		return 0, unix.EIO
	}
	return b.ReaderAt.ReadAt(into, offset)
}

// Of a keyslot there is no second copy in the container, and nothing to repair it from.
func TestCheckHeaderUnreadable(t *testing.T) {
	r := newRing(t)
	r.backUp()
	file, err := os.Open(r.container())
	r.must(err)
	defer file.Close()
	area := r.header().Metadata.Keyslots[1].Area
	for at, want := range map[int64]error{100: ErrHeaderDamaged, area.Offset + 8192: ErrKeyslotDamaged, area.Offset + area.Size - 1: ErrKeyslotDamaged} {
		_, err := r.CheckHeader(badSector{file, at}, ringBytes)
		if !errors.Is(err, want) || !errors.Is(err, ErrHeaderDamaged) && !strings.Contains(err.Error(), "keyslot 1:") {
			t.Errorf("byte %d: %v, want %v", at, err, want)
		}
	}
}

// A copy that does not reach the disk takes the place of none.
func TestBackupIsNotWritten(t *testing.T) {
	r := newRing(t)
	r.backUp()
	before := r.header()
	_, err := openRing(r.dir, unwritten{}).BackUpHeader(t.Context())
	if !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
	r.requireBackup(before)
}

// What a cryptsetup has begun that was stopped takes no room.
func TestBackupIsBegun(t *testing.T) {
	r := newRing(t)
	r.backUp()
	before := r.header()
	if _, err := openRing(r.dir, begun{}).BackUpHeader(t.Context()); !errors.Is(err, unlock.ErrCryptsetup) || errors.Is(err, state.ErrNoSpace) {
		t.Error(err)
	}
	r.requireBackup(before)
}

// begun makes copies of the header that end in the middle.
type begun struct{ command.Runner }

func (b begun) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	out, err := b.Runner.Run(ctx, stdin, extra, name, args...)
	if err == nil && args[0] == "luksHeaderBackup" {
		err = os.Truncate(args[slices.Index(args, "--header-backup-file")+1], 4096)
		return nil, errors.Join(err, errors.New("signal: terminated"))
	}
	return out, err
}

// unwritten makes copies of the header that cannot be synced.
type unwritten struct{ command.Runner }

func (u unwritten) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if args[0] == "luksHeaderBackup" {
		return nil, os.Symlink("/dev/null", args[slices.Index(args, "--header-backup-file")+1])
	}
	return u.Runner.Run(ctx, stdin, extra, name, args...)
}

// scribble changes a byte of a header.
func (r *ring) scribble(at int64) {
	r.t.Helper()
	file, err := os.OpenFile(r.container(), os.O_WRONLY, 0)
	r.must(err)
	defer file.Close()
	_, err = file.WriteAt([]byte{0xff}, at)
	r.must(err)
}

// Another container, and one whose cipher was changed, are two things.
func TestCheckHeaderPin(t *testing.T) {
	for cipher, want := range map[string]error{"aes-xts-plain64": luks2.ErrPinMismatch, "serpent-xts-plain64": ErrCipherChanged} {
		r := newRing(t)
		record, err := r.Record()
		r.must(err)
		if want == luks2.ErrPinMismatch {
			record.Pin.VolumeKeyDigest = "another"
		} else {
			record.Pin.Cipher = cipher
		}
		r.must(r.saveRecord(record))
		r.requireLook(want)
	}
}

// A change that was interrupted behind its record has left a keyslot of luksmediad, which the next one makes known.
func TestKnownAfterInterruption(t *testing.T) {
	r := newRing(t)
	r.backUp()
	before := r.header()
	r.addForeign(4, "begun")
	record, err := r.Record()
	r.must(err)
	record.Keyslots = append(record.Keyslots, r.made(4, sourceKeyFile))
	r.must(r.saveRecord(record))
	r.must(r.states.Save(r.keyChangeName(), keyChangeVersion, &keyChange{UUID: before.UUID,
		Added: &addedKeyslot{Keyslot: 4, Source: sourceKeyFile, Sequence: before.SequenceID, Salt: r.header().Metadata.Keyslots[4].KDF.Salt}}))
	r.requireLook(ErrBackupOld)
	restore := r.snapshot()
	r.add(EnrolPassphrase{Key: newSecret(t, "another")})
	r.requireLook(nil)

	// A copy of the header ends it as well.
	restore()
	r.backUp()
	r.requireLook(nil)
	r.requireKeyslots("0 recovery", "4 keyfile")
	// A change of a container that was there before ends nothing.
	r.must(r.states.Save(r.keyChangeName(), keyChangeVersion, &keyChange{UUID: "another"}))
	r.backUp()
	r.requireKeyslots("0 recovery", "4 keyfile")
}

func TestProofs(t *testing.T) {
	r := newRing(t)
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.must(r.NoteProof(r.header(), 0, sourceRecovery))
	proven, err := r.Proofs(r.header())
	r.must(err)
	if len(proven) != 2 || proven[0].Keyslot != 2 || proven[0].Source != sourceKeyFile || proven[1].Keyslot != 0 || proven[1].Time.IsZero() {
		t.Errorf("%+v", proven)
	}
	// A keyslot that is filled anew is not proven.
	r.run("luksKillSlot", "--key-file="+r.path("passphrase"), r.container(), "2")
	r.addForeign(2, "in its place")
	if proven, err = r.Proofs(r.header()); err != nil || len(proven) != 1 {
		t.Errorf("%+v, %v", proven, err)
	}
}

// State that only tells about a container, and is damaged, is written anew by what tells it; it ends an interrupted change as well.
func TestDamagedNotes(t *testing.T) {
	r := newRing(t)
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.backUp()
	r.must(r.states.Save(r.keyChangeName(), keyChangeVersion, &keyChange{UUID: r.header().UUID}))
	damage := func(names ...string) {
		for _, name := range names {
			r.must(os.WriteFile(filepath.Join(r.paths.State, name+".json"), []byte(`{"version":1,"da`), 0o600))
		}
	}
	damage(r.knownName(), r.enrolmentName(), r.proofName())
	r.requireLook(ErrBackupMissing)
	restore := r.snapshot()
	r.backUp()
	r.requireLook(nil)
	restore()
	r.must(r.remove(2))
	r.must(r.NoteProof(r.header(), 0, sourceRecovery))
	if proven, err := r.Proofs(r.header()); err != nil || len(proven) != 1 {
		t.Errorf("%+v, %v", proven, err)
	}
}
