package keys

import (
	"context"
	"errors"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/internal/command"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

const passphrase = "correct horse battery staple"

// newContainer makes a real one with the passphrase in keyslot 0.
func newContainer(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "container")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 18<<20)); err != nil {
		t.Fatal(err)
	}
	cryptsetup(t, "luksFormat", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file=-", path)
	return path
}

func cryptsetup(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("/usr/sbin/cryptsetup", append([]string{"--batch-mode"}, args...)...)
	cmd.Stdin = strings.NewReader(passphrase)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cryptsetup %v: %v: %s", args, err, out)
	}
}

func newTest(t *testing.T, path string, sources ...unlock.Source) *Test {
	t.Helper()
	container, err := Read(path)
	if err == nil {
		err = container.Header.Validate(container.Bytes)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &Test{Container: container, Cryptsetup: unlock.Cryptsetup{Runner: command.Runner{}}, Sources: sources, Slots: Slots(container.Header, nil)}
}

func typed(t *testing.T, text string) unlock.Source {
	t.Helper()
	key, err := secret.From([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return unlock.Passphrase{Key: key}
}

// A keyslot whose key is not that of the volume is no way in, and no key is offered to it.
func TestUnboundKeyslot(t *testing.T) {
	path := newContainer(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("unbound"), 0o600); err != nil {
		t.Fatal(err)
	}
	cryptsetup(t, "luksAddKey", "--unbound", "--key-size=256", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-slot=5", path, key)
	test := newTest(t, path, typed(t, passphrase), unlock.KeyFile{Path: key})
	unplaced, err := test.Run(t.Context())
	if err != nil || len(unplaced) != 1 || unplaced[0].Source != KeyFile || !errors.Is(unplaced[0].Err, unlock.ErrWrongKey) {
		t.Errorf("%+v, %v", unplaced, err)
	}
	if len(test.Slots) != 2 || !test.Slots[0].Proven() || !test.Slots[1].Unbound || test.Slots[1].Proofs != nil {
		t.Errorf("%+v", describe(test.Slots))
	}
}

// Where nothing could be tried no key is to blame. Where something opens the container the rest is told beside it.
func TestNothingCouldBeTried(t *testing.T) {
	path := newContainer(t)
	test := newTest(t, path, typed(t, passphrase))
	test.Cryptsetup.Runner = failing{}
	if _, err := test.Run(t.Context()); !errors.Is(err, unlock.ErrCryptsetup) {
		t.Error(err)
	}
	test = newTest(t, path, typed(t, passphrase), noMemory{})
	if unplaced, err := test.Run(t.Context()); err != nil || len(unplaced) != 1 || !errors.Is(unplaced[0].Err, secret.ErrNoMemory) {
		t.Errorf("%+v, %v", unplaced, err)
	}
	test = newTest(t, path, noMemory{})
	if _, err := test.Run(t.Context()); !errors.Is(err, secret.ErrNoMemory) {
		t.Error(err)
	}
}

// failing finds no program.
type failing struct{}

func (failing) Run(context.Context, *os.File, []*os.File, string, ...string) ([]byte, error) {
	return nil, command.ErrNotFound
}

// noMemory has no place for a key.
type noMemory struct{}

func (noMemory) Name() string { return "keyfile" }

func (noMemory) Offers(context.Context, *luks2.Header) iter.Seq2[unlock.Offer, error] {
	return func(yield func(unlock.Offer, error) bool) { yield(unlock.Offer{}, secret.ErrNoMemory) }
}

// A key is not blamed on a keyslot that is recorded to be another's.
func TestKeyOfRecordedKeyslot(t *testing.T) {
	test := newTest(t, newContainer(t), unlock.KeyFile{Path: filepath.Join(t.TempDir(), "missing")})
	header := test.Container.Header
	test.Slots = Slots(header, []volume.Keyslot{{Slot: 0, Source: "recovery", Salt: header.Metadata.Keyslots[0].KDF.Salt}})
	unplaced, err := test.Run(t.Context())
	if err != nil || len(unplaced) != 1 || !errors.Is(unplaced[0].Err, unlock.ErrKeyFileMissing) || len(test.Slots[0].Proofs) > 0 {
		t.Errorf("%+v, %v, %+v", unplaced, err, test.Slots[0])
	}
	test.Sources = []unlock.Source{typed(t, "wrong")}
	unplaced, err = test.Run(t.Context())
	if err != nil || len(unplaced) > 0 || !errors.Is(test.Slots[0].Err(), unlock.ErrWrongKey) {
		t.Errorf("%+v, %v, %+v", unplaced, err, test.Slots[0])
	}
}

// What was read is what is tested: the container may be gone by then.
func TestContainerIsReadOnce(t *testing.T) {
	path := newContainer(t)
	test := newTest(t, path, typed(t, passphrase))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if unplaced, err := test.Run(t.Context()); err != nil || len(unplaced) > 0 || !test.Slots[0].Proven() {
		t.Errorf("%v, %v, %+v", unplaced, err, test.Slots[0])
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	test := newTest(t, newContainer(t), typed(t, passphrase))
	if _, err := test.Run(ctx); !errors.Is(err, context.Canceled) || len(test.Slots[0].Proofs) > 0 {
		t.Errorf("%v, %+v", err, test.Slots[0].Proofs)
	}
}

// What is known of a header that cannot be used comes with the error.
func TestReadDamaged(t *testing.T) {
	path := newContainer(t)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[5000], content[16384+5000] = 'x', 'x'
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	container, err := Read(path)
	if !errors.Is(err, luks2.ErrDamaged) || container.Header != nil || container.Bytes != 18<<20 || len(container.Copies) != 0 {
		t.Errorf("%+v, %v", container, err)
	}
}
