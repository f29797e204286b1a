package unlock

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// recorder runs the real programs and remembers with which arguments.
type recorder struct {
	command.Runner
	calls [][]string
}

func (r *recorder) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	r.calls = append(r.calls, append([]string{name}, args...))
	return r.Runner.Run(ctx, stdin, extra, name, args...)
}

// requireNoKey wants no argument of any program to hold a key in a form that somebody could read back.
func (r *recorder) requireNoKey(t *testing.T, keys ...string) {
	t.Helper()
	if len(r.calls) == 0 {
		t.Fatal("no program was run")
	}
	for _, call := range r.calls {
		line := strings.Join(call, "\x00")
		for _, key := range keys {
			for _, form := range []string{key, hex.EncodeToString([]byte(key)), base64.StdEncoding.EncodeToString([]byte(key))} {
				if strings.Contains(line, form) {
					t.Errorf("%q holds the key %q", call, key)
				}
			}
		}
	}
}

// keyslots lists the values that --key-slot had.
func (r *recorder) keyslots() []string {
	var slots []string
	for _, call := range r.calls {
		if i := slices.Index(call, "--key-slot"); i >= 0 {
			slots = append(slots, call[i+1])
		}
	}
	return slots
}

func newKey(t testing.TB, text string) *secret.Key {
	t.Helper()
	key, err := secret.From([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Wipe)
	return key
}

const (
	containerBytes = 18 << 20
	// The key and the keyslot that newContainer formats with. The key holds what a line-wise reader would lose.
	formatKey  = "first line\nsecond\x00line\n\xff0123456789abcdef"
	formatSlot = 31
)

// newContainer formats a plain file.
func newContainer(t testing.TB, cryptsetup Cryptsetup) string {
	t.Helper()
	path := blankFile(t, containerBytes)
	formatContainer(t, cryptsetup, path)
	return path
}

func formatContainer(t testing.TB, cryptsetup Cryptsetup, device string) {
	t.Helper()
	err := cryptsetup.Format(t.Context(), device, newKey(t, formatKey),
		FormatOptions{UUID: uuid.NewString(), Label: "luksmediad-test", Keyslot: formatSlot, SectorBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
}

func blankFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "container.luks")
	writeFile(t, path, "", 0o600)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func writeFile(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

// addKey gives a container a cheap keyslot.
func addKey(t testing.TB, cryptsetup Cryptsetup, device, key string, slot int) {
	t.Helper()
	if err := cryptsetup.AddKey(t.Context(), device, wayBy(t, formatKey, formatSlot), newKey(t, key), slot, MinimalPBKDF); err != nil {
		t.Fatal(err)
	}
}

// wayBy is a way in by one keyslot, proven or not.
func wayBy(t testing.TB, key string, slot int) *Way {
	t.Helper()
	return &Way{Keyslots: []int{slot}, Key: newKey(t, key)}
}

// prove tries a key on what the header of the container is now.
func prove(t testing.TB, cryptsetup Cryptsetup, device string, key *secret.Key, slot int) error {
	t.Helper()
	return cryptsetup.Prove(t.Context(), device, readHeader(t, device), key, slot)
}

func importToken(t testing.TB, cryptsetup Cryptsetup, device, token string) {
	t.Helper()
	if err := cryptsetup.ImportToken(t.Context(), device, []byte(token)); err != nil {
		t.Fatal(err)
	}
}

func readHeader(t testing.TB, device string) *luks2.Header {
	t.Helper()
	file, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	header, err := luks2.Read(file, containerBytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := header.Validate(containerBytes); err != nil {
		t.Fatal(err)
	}
	return header
}

func fileSum(t testing.TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return sum[:]
}

func requireUnchanged(t testing.TB, path string, before []byte) {
	t.Helper()
	if !bytes.Equal(fileSum(t, path), before) {
		t.Errorf("%s has changed", path)
	}
}
