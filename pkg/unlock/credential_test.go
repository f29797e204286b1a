package unlock

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const credentialID = "luksmediad.key"

func TestCredentialIsReadVerbatim(t *testing.T) {
	for name, content := range map[string]string{"text": "key\n", "base64": "a2V5Cg==", "binary": "\x00\xff\n\x00"} {
		for _, mode := range []os.FileMode{0o400, 0o440} {
			folder := t.TempDir()
			writeFile(t, filepath.Join(folder, credentialID), content, mode)
			key, err := Credential{ID: credentialID, Folders: []string{"", filepath.Join(folder, "none"), folder}}.Read()
			if err != nil || string(key.Bytes()) != content {
				t.Errorf("%s, mode %o: %q, %v", name, mode, key.Bytes(), err)
			}
			key.Wipe()
		}
	}
}

// The first folder that has the credential counts, also if the credential there cannot be used.
func TestCredentialOfTheFirstFolder(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(second, credentialID), "second", 0o400)
	credential := Credential{ID: credentialID, Folders: []string{first, second}}
	key, err := credential.Read()
	if err != nil || string(key.Bytes()) != "second" {
		t.Errorf("read %q, %v", key.Bytes(), err)
	}
	key.Wipe()
	writeFile(t, filepath.Join(first, credentialID), "", 0o400)
	if _, err := credential.Read(); !errors.Is(err, ErrCredentialUnsafe) {
		t.Errorf("an empty one: %v", err)
	}
}

func TestCredentialIsRefused(t *testing.T) {
	for name, bad := range map[string]badKeyFile{
		"missing":         {func(*testing.T, string) {}, ErrCredentialMissing, "missing"},
		"symbolic link":   {linked(os.Symlink), ErrCredentialUnsafe, "symbolic link"},
		"two names":       {linked(os.Link), ErrCredentialUnsafe, "2 names"},
		"group may write": {withMode(0o460), ErrCredentialUnsafe, "0460"},
		"others may read": {withMode(0o444), ErrCredentialUnsafe, "0444"},
		"empty":           {withBytes(0), ErrCredentialUnsafe, "empty"},
		"huge":            {withBytes(1 << 30), ErrCredentialUnsafe, "more than 4096"},
		"FIFO":            {makeFIFO, ErrCredentialUnsafe, "not a regular file"},
		"folder":          {makeFolder, ErrCredentialUnsafe, "not a regular file"},
	} {
		folder := t.TempDir()
		bad.make(t, filepath.Join(folder, credentialID))
		key, err := Credential{ID: credentialID, Folders: []string{folder}}.Read()
		if key != nil || !errors.Is(err, bad.class) || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("%s: read %v, %v", name, key, err)
		}
	}
}

// Whoever is not the service may not even look into the folder, which is told apart from a credential that is not there.
func TestCredentialOfAnotherUser(t *testing.T) {
	folder := t.TempDir()
	writeFile(t, filepath.Join(folder, credentialID), "key", 0o400)
	if err := os.Chmod(folder, 0); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(folder, 0o700)
	key, err := Credential{ID: credentialID, Folders: []string{folder}}.Read()
	defer key.Wipe()
	if root := os.Geteuid() == 0; root != (err == nil) || !root && !errors.Is(err, ErrCredentialUnsafe) {
		t.Errorf("read: %v", err)
	}
}

// What systemd-creds(1) has encrypted comes out as it went in. The null key is the one that needs no root.
func TestCredentialOfSystemdCreds(t *testing.T) {
	const secret = "first line\nsecond\x00\xff\n"
	folder, encrypted := t.TempDir(), filepath.Join(t.TempDir(), "encrypted")
	writeFile(t, filepath.Join(folder, "plain"), secret, 0o400)
	systemdCreds(t, "encrypt", "--with-key="+nullKey(t), "--name="+credentialID, filepath.Join(folder, "plain"), encrypted)
	arguments := []string{"decrypt", "--name=" + credentialID, encrypted, filepath.Join(folder, credentialID)}
	if strings.Contains(systemdCreds(t, "--help"), "--allow-null") { // since systemd 256
		arguments = append(arguments, "--allow-null")
	}
	systemdCreds(t, arguments...)
	if err := unix.Chmod(filepath.Join(folder, credentialID), 0o400); err != nil { // the mode it has in a service
		t.Fatal(err)
	}

	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	addKey(t, cryptsetup, device, secret, 3)
	offers := offersOf(t, Credential{ID: credentialID, Folders: []string{folder}}, readHeader(t, device))
	requireOffers(t, offers, offered{secret, []int{3, formatSlot}})
}

// nullKey is the word for the null key, which systemd 256 has renamed.
func nullKey(t *testing.T) string {
	if exec.Command("systemd-creds", "encrypt", "--with-key=null", "/dev/null", "/dev/null").Run() == nil {
		return "null"
	}
	return "tpm2-absent"
}

func systemdCreds(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("systemd-creds", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("systemd-creds %v: %v\n%s", args, err, stderr.String())
	}
	return string(output)
}
