package boot

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/swtpm"
)

const passphrase = "correct horse battery staple"

// container is a real one in a plain file, with the passphrase in keyslot 0.
type container struct {
	t    *testing.T
	path string
	next int
}

func newContainer(t *testing.T) *container {
	t.Helper()
	c := &container{t, filepath.Join(t.TempDir(), "container"), 1}
	if err := errors.Join(os.WriteFile(c.path, nil, 0o600), os.Truncate(c.path, 18<<20)); err != nil {
		t.Fatal(err)
	}
	c.cryptsetup(passphrase, "luksFormat", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file=-", c.path)
	return c
}

func (c *container) cryptsetup(stdin string, args ...string) {
	c.t.Helper()
	cmd := exec.Command("/usr/sbin/cryptsetup", append([]string{"--batch-mode"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("cryptsetup %v: %v: %s", args, err, out)
	}
}

func (c *container) file(name, content string) string {
	c.t.Helper()
	path := filepath.Join(filepath.Dir(c.path), name)
	if err := os.WriteFile(path, []byte(content), 0o400); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// add puts the content of a file into the next keyslot.
func (c *container) add(path string) int {
	c.t.Helper()
	keyslot := c.next
	c.next++
	c.cryptsetup(passphrase, "luksAddKey", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file=-",
		"--key-slot="+strconv.Itoa(keyslot), c.path, path)
	return keyslot
}

// seal enrols a TPM for the next keyslot.
func (c *container) seal(s *swtpm.TPM, options tpm2.SealOptions) int {
	c.t.Helper()
	device, err := tpm2.Open(c.t.Context(), s.TCTI())
	if err != nil {
		c.t.Fatal(err)
	}
	defer device.Close()
	key, err := secret.Random(32)
	if err != nil {
		c.t.Fatal(err)
	}
	defer key.Wipe()
	token, err := device.Seal(c.t.Context(), key, options)
	if err != nil {
		c.t.Fatal(err)
	}
	text, err := key.Base64()
	if err != nil {
		c.t.Fatal(err)
	}
	defer text.Wipe()
	token.Keyslots = []int{c.add(c.file("sealed"+strconv.Itoa(c.next), string(text.Bytes())))}
	raw, err := json.Marshal(token)
	if err != nil {
		c.t.Fatal(err)
	}
	c.cryptsetup(string(raw), "token", "import", "--disable-external-tokens", "--json-file=-", c.path)
	return token.Keyslots[0]
}

func (c *container) header() *luks2.Header {
	c.t.Helper()
	file, err := os.Open(c.path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer file.Close()
	header, err := luks2.Read(file, 18<<20)
	if err == nil {
		err = header.Validate(18 << 20)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return header
}

// requireAttempts wants each source as "name status keyslot", and not a bit of the container to change.
func (c *container) requireAttempts(sources []unlock.Source, want ...string) []Attempt {
	c.t.Helper()
	before := c.sum()
	attempts, err := Rehearsal{unlock.Cryptsetup{Runner: command.Runner{}}, c.path, c.header()}.Try(c.t.Context(), sources)
	if err != nil {
		c.t.Fatal(err)
	}
	var got []string
	for _, a := range attempts {
		got = append(got, a.Name+" "+string(a.Status)+" "+strconv.Itoa(a.Keyslot))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		c.t.Errorf("%s%+v", diff, attempts)
	}
	if c.sum() != before {
		c.t.Error("the container has changed")
	}
	return attempts
}

func (c *container) sum() [sha256.Size]byte {
	c.t.Helper()
	content, err := os.ReadFile(c.path)
	if err != nil {
		c.t.Fatal(err)
	}
	return sha256.Sum256(content)
}

// Each source is really asked, and its key proven on the header; one that fails says why and ends none of the others.
func TestTry(t *testing.T) {
	c, s := newContainer(t), swtpm.Start(t)
	s.Extend(7, "boot")
	key := c.file("key", "0123456789abcdef\n0123456789abcde")
	c.add(key)
	c.seal(s, tpm2.SealOptions{PCRs: []int{7}})
	missing, wrong := filepath.Join(t.TempDir(), "missing"), c.file("wrong", "not it")
	sources := []unlock.Source{unlock.TPM2{Device: s.TCTI()}, unlock.KeyFile{Path: key}, unlock.KeyFile{Path: missing}, unlock.KeyFile{Path: wrong}}
	attempts := c.requireAttempts(sources, "tpm2 ok 2", "keyfile ok 1", "keyfile failed -1", "keyfile failed -1")
	if !errors.Is(attempts[2].Err, unlock.ErrKeyFileMissing) || !errors.Is(attempts[3].Err, unlock.ErrWrongKey) {
		t.Errorf("%v, %v", attempts[2].Err, attempts[3].Err)
	}
	if diff := cmp.Diff([]Binding{{2, tpm2.SHA256, []int{7}}}, Bindings(c.header(), attempts[0].Keyslot)); diff != "" {
		t.Error(diff)
	}
	if bindings := Bindings(c.header(), attempts[1].Keyslot); bindings != nil {
		t.Errorf("a key file is bound to no PCR: %v", bindings)
	}
}

// What keeps a TPM from giving the key, found before the reboot.
func TestTryOfTPMTrouble(t *testing.T) {
	c, s := newContainer(t), swtpm.Start(t)
	s.Extend(7, "boot")
	c.seal(s, tpm2.SealOptions{PCRs: []int{7}})
	sources := []unlock.Source{unlock.TPM2{Device: s.TCTI()}}
	failed := func(class error) {
		t.Helper()
		if attempt := c.requireAttempts(sources, "tpm2 failed -1")[0]; !errors.Is(attempt.Err, class) {
			t.Errorf("%v, want %v", attempt.Err, class)
		}
	}
	c.requireAttempts(sources, "tpm2 ok 1")
	s.Extend(7, "something new") // fault 41
	failed(tpm2.ErrPolicy)
	s.Replace() // fault 43
	failed(tpm2.ErrSRKMismatch)
	s.PowerCut() // fault 38
	failed(tpm2.ErrAbsent)
}

// fault 44: a token that cannot be unsealed does not hide the next.
func TestTryTriesEveryToken(t *testing.T) {
	c, s := newContainer(t), swtpm.Start(t)
	s.Extend(7, "boot")
	c.seal(s, tpm2.SealOptions{PCRs: []int{7}})
	c.seal(s, tpm2.SealOptions{})
	s.Extend(7, "something new")
	c.requireAttempts([]unlock.Source{unlock.TPM2{Device: s.TCTI()}}, "tpm2 ok 2")
}

// A key with a PIN needs a person, and costs no attempt on the PIN.
func TestTryOfPIN(t *testing.T) {
	c, s := newContainer(t), swtpm.Start(t)
	pin, err := secret.From([]byte("1234"))
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Wipe()
	keyslot := c.seal(s, tpm2.SealOptions{PIN: pin})
	if attempt := c.requireAttempts([]unlock.Source{unlock.TPM2{Device: s.TCTI()}}, "tpm2 attended -1")[0]; attempt.Err != nil {
		t.Error(attempt.Err)
	}
	device, err := tpm2.Open(t.Context(), s.TCTI())
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	token, err := tpm2.ParseToken(c.header().Tokens(tpm2.TokenType)[0].Raw)
	if err != nil {
		t.Fatal(err)
	}
	key, err := device.UnsealWith(t.Context(), token, tpm2.UnsealOptions{PIN: pin})
	if err != nil {
		t.Fatalf("keyslot %d: %v", keyslot, err)
	}
	key.Wipe()
}

// A key with a PIN does not hide that the TPM refuses the one without: a source that has no PIN fails, while one that has it asks a person.
func TestTryOfPINBesideRefusedKey(t *testing.T) {
	c, s := newContainer(t), swtpm.Start(t)
	pin, err := secret.From([]byte("1234"))
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Wipe()
	s.Extend(7, "boot")
	c.seal(s, tpm2.SealOptions{PCRs: []int{7}})
	c.seal(s, tpm2.SealOptions{PIN: pin})
	nobody := unlock.Ask(func(ctx context.Context) (*secret.Key, error) { return Nobody(ctx, "PIN", 0) })
	sources := []unlock.Source{unlock.TPM2{Device: s.TCTI()}, unlock.TPM2{Device: s.TCTI(), PINs: nobody}}
	c.requireAttempts(sources, "tpm2 ok 1", "tpm2 ok 1")
	s.Extend(7, "something new")
	if attempt := c.requireAttempts(sources, "tpm2 failed -1", "tpm2 attended -1")[0]; !errors.Is(attempt.Err, tpm2.ErrPolicy) {
		t.Error(attempt.Err)
	}
}

// Nobody is asked: neither for a passphrase nor for the PIN that a token wants.
func TestTryAsksNobody(t *testing.T) {
	c, s := newContainer(t), swtpm.Start(t)
	pin, err := secret.From([]byte("1234"))
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Wipe()
	c.seal(s, tpm2.SealOptions{PIN: pin})
	nobody := unlock.Ask(func(ctx context.Context) (*secret.Key, error) { return Nobody(ctx, "secret", 0) })
	c.add(c.file("key", "0123456789abcdef0123456789abcdef")) // a keyslot for a passphrase, else none is asked for
	sources := []unlock.Source{unlock.Prompt{Ask: nobody}, unlock.TPM2{Device: s.TCTI(), PINs: nobody}}
	for _, attempt := range c.requireAttempts(sources, "passphrase attended -1", "tpm2 attended -1") {
		if !strings.Contains(attempt.Text, "it asks a person") {
			t.Error(attempt.Text)
		}
	}
}

// empty offers nothing.
type empty struct{}

func (empty) Name() string { return "empty" }

func (empty) Offers(context.Context, *luks2.Header) iter.Seq2[unlock.Offer, error] {
	return func(func(unlock.Offer, error) bool) {}
}

func TestTryOfSourceWithoutKey(t *testing.T) {
	if attempt := newContainer(t).requireAttempts([]unlock.Source{empty{}}, "empty failed -1")[0]; !errors.Is(attempt.Err, unlock.ErrNoKeyslot) {
		t.Error(attempt.Err)
	}
}

func TestTryIsInterrupted(t *testing.T) {
	c := newContainer(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Rehearsal{unlock.Cryptsetup{Runner: command.Runner{}}, c.path, c.header()}).Try(ctx, []unlock.Source{empty{}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
