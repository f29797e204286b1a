package volume

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/swtpm"
)

// pinned is a header with a token for the PIN 1234, and what is needed to try a PIN file on it as often as programs start.
type pinned struct {
	t      *testing.T
	header *luks2.Header
	config *config.Config
	paths  Paths
}

func newPinned(t *testing.T, content string) *pinned {
	t.Helper()
	s := swtpm.Start(t)
	device, err := tpm2.Open(t.Context(), s.TCTI())
	must(t, err)
	defer device.Close()
	pin, err := secret.From([]byte("1234"))
	must(t, err)
	key, err := secret.Random(32)
	must(t, err)
	token, err := device.Seal(t.Context(), key, tpm2.SealOptions{PIN: pin})
	must(t, err)
	token.Keyslots = []int{1}
	raw, err := json.Marshal(token)
	must(t, err)
	header := &luks2.Header{Metadata: luks2.Metadata{
		Segments: map[int]luks2.Segment{0: {Type: "crypt"}},
		Digests:  map[int]luks2.Digest{0: {Keyslots: []int{1}, Segments: []int{0}}},
		Tokens:   map[int]luks2.Token{0: {Type: tpm2.TokenType, Keyslots: []int{1}, Raw: raw}},
	}}
	path := filepath.Join(t.TempDir(), "pin")
	must(t, os.WriteFile(path, []byte(content), 0o400))
	c := &config.Config{Volume: config.Volume{Name: "media"}, Unlock: []config.KeySource{{TPM2: &config.TPM2{Device: s.TCTI(), PIN: path}}}}
	return &pinned{t, header, c, Paths{State: filepath.Join(t.TempDir(), "state")}}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// try is an opening by a program that has just started.
func (p *pinned) try() error {
	p.t.Helper()
	for offer, err := range New(p.config, p.paths, command.Runner{}).Sources()[0].Offers(p.t.Context(), p.header) {
		offer.Key.Wipe()
		return err
	}
	return errors.New("nothing was offered")
}

// fault 40: a wrong PIN in a file costs the TPM one attempt, however many programs start and try it, until the file changes.
func TestRefusedPINFileIsRememberedByOthers(t *testing.T) {
	p := newPinned(t, "0000\n")
	for range 5 { // swtpm locks after 3
		if err := p.try(); !errors.Is(err, tpm2.ErrPIN) {
			t.Fatal(err)
		}
	}
	path := p.config.Unlock[0].TPM2.PIN
	must(t, errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, []byte("1234\n"), 0o600)))
	must(t, p.try())
}

// What cannot be written down is said, and does not keep the right PIN from being tried.
func TestRefusedPINFileWithoutMemory(t *testing.T) {
	p := newPinned(t, "0000\n")
	must(t, os.WriteFile(p.paths.State, nil, 0o600))
	if err := p.try(); !errors.Is(err, tpm2.ErrPIN) || !strings.Contains(err.Error(), "cannot write state refused-media") {
		t.Error(err)
	}
	path := p.config.Unlock[0].TPM2.PIN
	must(t, errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, []byte("1234\n"), 0o600)))
	must(t, p.try())
}

// What is remembered stays small: of a file its last state, of files those that are configured.
func TestRefusalsForget(t *testing.T) {
	c := &config.Config{Volume: config.Volume{Name: "media"}, Unlock: []config.KeySource{{TPM2: &config.TPM2{PIN: "/pin"}}}}
	memory := New(c, Paths{State: filepath.Join(t.TempDir(), "state")}, command.Runner{}).pinFile("/pin").Memory.(refusals)
	pin := func(path string, changed int64, token string) unlock.RefusedPIN {
		return unlock.RefusedPIN{Path: path, Changed: changed, Token: token}
	}
	for _, refused := range []unlock.RefusedPIN{pin("/other", 1, "a"), pin("/pin", 1, "a"), pin("/pin", 2, "a"), pin("/pin", 2, "b"), pin("/pin", 2, "a")} {
		must(t, memory.Refuse(refused))
		if !memory.Refused(refused) {
			t.Errorf("%+v is forgotten", refused)
		}
	}
	if want := []unlock.RefusedPIN{pin("/pin", 2, "b"), pin("/pin", 2, "a")}; !slices.Equal(memory.known(), want) {
		t.Errorf("got %+v", memory.known())
	}
}
