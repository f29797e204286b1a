package unlock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"luksmediad/pkg/unlock/tpm2"
)

// Every source is asked in its order, each for its own reason, and all of them are told. // fault 44
func TestOpenReportsEveryAttempt(t *testing.T) {
	r := &recorder{}
	cryptsetup := Cryptsetup{Runner: r}
	device := newContainer(t, cryptsetup)
	importToken(t, cryptsetup, device, `{"type":"systemd-recovery","keyslots":["31"]}`)
	unsafe := filepath.Join(t.TempDir(), "key")
	writeFile(t, unsafe, "key", 0o644)
	typed := newKey(t, "correct horse")
	opener := Opener{Cryptsetup: cryptsetup, Sources: []Source{
		TPM2{Device: "auto"},
		KeyFile{Path: unsafe + ".missing"},
		KeyFile{Path: unsafe},
		Passphrase{Key: typed},
	}}
	r.calls = nil

	opened, err := opener.Open(t.Context(), Target{Container: "/srv/media.luks", Device: device, Name: "luksmediad-test", Header: readHeader(t, device)})
	failed, ok := errors.AsType[*NoKeyError](err)
	if opened != nil || !ok || !errors.Is(err, ErrNoKeyFits) {
		t.Fatalf("opened %v, %v", opened, err)
	}
	var sources []string
	for i, class := range []error{ErrNoKeyslot, ErrKeyFileMissing, ErrKeyFileUnsafe, ErrNoKeyslot} {
		attempt := failed.Attempts[i]
		sources = append(sources, attempt.Source)
		if attempt.Index != i {
			t.Errorf("%v is of source %d, want %d", attempt, attempt.Index, i)
		}
		if !errors.Is(attempt, class) || !errors.Is(err, class) {
			t.Errorf("%v is not of class %v", attempt, class)
		}
	}
	if want := []string{"tpm2", "keyfile", "keyfile", "passphrase"}; !slices.Equal(sources, want) {
		t.Errorf("asked %v, want %v", sources, want)
	}
	if text := err.Error(); !strings.HasPrefix(text, "cannot unlock /srv/media.luks: no key fits (tpm2: ") {
		t.Error(text)
	}
	if len(r.calls) != 0 {
		t.Errorf("without a keyslot to try, cryptsetup was run: %q", r.calls)
	}
	if typed.Len() != 0 {
		t.Error("the passphrase was not wiped")
	}
}

func TestOpenWithoutSources(t *testing.T) {
	device := newContainer(t, Cryptsetup{Runner: &recorder{}})
	_, err := Opener{}.Open(t.Context(), Target{Container: device, Device: device, Header: readHeader(t, device)})
	if failed, ok := errors.AsType[*NoKeyError](err); !ok || len(failed.Attempts) != 0 {
		t.Error(err)
	}
}

// One who gives up is told so, not that no key fits.
func TestOpenEndsWithItsContext(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	reason := errors.New("the machine shuts down")
	ctx, end := context.WithCancelCause(t.Context())
	end(reason)
	opener := Opener{Cryptsetup: cryptsetup, Sources: []Source{KeyFile{Path: "/nonexistent/key"}, Passphrase{Key: newKey(t, formatKey)}}}
	_, err := opener.Open(ctx, Target{Container: device, Device: device, Name: "luksmediad-test", Header: readHeader(t, device)})
	if !errors.Is(err, reason) || errors.Is(err, ErrNoKeyFits) {
		t.Error(err)
	}
}

// What would fail with any key is neither a missing key nor a reason to ask for the next one.
func TestOpenEndsWhereNoKeyHelps(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	header := readHeader(t, device)
	path := filepath.Join(t.TempDir(), "key")
	writeFile(t, path, formatKey, 0o400)
	last := newKey(t, formatKey)
	opener := Opener{Cryptsetup: cryptsetup, Sources: []Source{KeyFile{Path: path + ".missing"}, KeyFile{Path: path}, Passphrase{Key: last}}}
	_, err := opener.Open(t.Context(), Target{Container: device, Device: device + ".missing", Name: "luksmediad-test", Header: header})
	if !errors.Is(err, ErrCryptsetup) || errors.Is(err, ErrNoKeyFits) {
		t.Error(err)
	}
	if last.Len() == 0 {
		t.Error("the next source was asked")
	}
}

// hanging has a program wait for what never comes, before it does anything or after.
type hanging struct {
	recorder
	program string
	after   bool
}

func (h *hanging) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if name != h.program {
		return h.recorder.Run(ctx, stdin, extra, name, args...)
	}
	if h.after {
		if out, err := h.recorder.Run(ctx, stdin, extra, name, args...); err != nil {
			return out, err
		}
	}
	return h.recorder.Run(ctx, stdin, extra, "sleep", "60")
}

// fault 70: a cryptsetup that comes to no end is ended, and the opening fails, so that it is tried again.
func TestOpenEndsWhereCryptsetupHangs(t *testing.T) {
	device := newContainer(t, Cryptsetup{Runner: &recorder{}})
	opener := Opener{Cryptsetup: Cryptsetup{Runner: &hanging{program: "cryptsetup"}, Patience: 50 * time.Millisecond},
		Sources: []Source{Passphrase{Key: newKey(t, formatKey)}}}
	began := time.Now()
	_, err := opener.Open(t.Context(), Target{Container: device, Device: device, Name: "luksmediad-test", Header: readHeader(t, device)})
	if !errors.Is(err, ErrCryptsetup) || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

// A token that cannot be unsealed does not hide the next one, and no TPM is not the end of the search either.
func TestTPM2WithoutTPM(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	importToken(t, cryptsetup, device, `{"type":"systemd-tpm2","keyslots":["31"]}`)
	header := readHeader(t, device)
	source := TPM2{Device: "swtpm:path=" + filepath.Join(t.TempDir(), "nothing.sock")}
	requireClasses(t, failures(t, source, header), tpm2.ErrAbsent)
}
