package unlock_test

import (
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

const provenPassphrase = "correct horse\nbattery staple"

// provable makes a container with the passphrase in keyslot 3, and lets damage happen before its header is read.
func provable(t *testing.T, damage func(content []byte), options ...string) (string, *luks2.Header) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "container")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 20<<20)); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"luksFormat", "--batch-mode", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
		"--key-file=-", "--key-slot=3", path}, options...)
	cmd := exec.Command("/usr/sbin/cryptsetup", args...)
	cmd.Stdin = strings.NewReader(provenPassphrase)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damage(content)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	header, err := luks2.Read(file, int64(len(content)))
	if err == nil {
		err = header.Validate(int64(len(content)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return path, header
}

func hash(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(content)
}

func prove(t *testing.T, path string, header *luks2.Header, text string, slot int) error {
	t.Helper()
	key, err := secret.From([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Wipe()
	return unlock.Cryptsetup{Runner: command.Runner{}}.Prove(t.Context(), path, header, key, slot)
}

// A key is proven on its own keyslot, whatever the state and layout of the header, and the container stays as it is.
func TestProve(t *testing.T) {
	tests := map[string]struct {
		damage  func(content []byte)
		options []string
	}{
		"intact":              {damage: func([]byte) {}},
		"primary damaged":     {damage: func(content []byte) { clear(content[:16384]) }}, // fault 50
		"secondary damaged":   {damage: func(content []byte) { clear(content[16384:32768]) }},
		"large metadata":      {damage: func([]byte) {}, options: []string{"--luks2-metadata-size=64k"}},
		"small keyslot area":  {damage: func([]byte) {}, options: []string{"--luks2-keyslots-size=512k"}},
		"aligned data":        {damage: func([]byte) {}, options: []string{"--offset=36864"}},
		"sectors of 512":      {damage: func([]byte) {}, options: []string{"--sector-size=512"}},
		"key of 256 bits":     {damage: func([]byte) {}, options: []string{"--key-size=256"}},
		"data behind damaged": {damage: func(content []byte) { clear(content[16<<20:]) }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path, header := provable(t, test.damage, test.options...)
			before := hash(t, path)
			if err := prove(t, path, header, provenPassphrase, 3); err != nil {
				t.Error(err)
			}
			for _, text := range []string{provenPassphrase + "\n", "correct horse", "x"} {
				if err := prove(t, path, header, text, 3); !errors.Is(err, unlock.ErrWrongKey) {
					t.Errorf("%q: %v", text, err)
				}
			}
			if err := prove(t, path, header, provenPassphrase, 4); !errors.Is(err, unlock.ErrCryptsetup) {
				t.Errorf("an empty keyslot: %v", err)
			}
			if hash(t, path) != before {
				t.Error("the container has changed")
			}
		})
	}
}

// The header that was read is the one that is tried, not what the container has become meanwhile.
func TestProveIgnoresTheContainer(t *testing.T) {
	path, header := provable(t, func([]byte) {})
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := prove(t, path, header, provenPassphrase, 3); err != nil {
		t.Error(err)
	}
}
