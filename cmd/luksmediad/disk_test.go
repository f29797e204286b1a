package main

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/swtpm"
)

// disk is a real LUKS2 container in a plain file, which the program may write to, and a folder that it may enter.
type disk struct {
	t   *testing.T
	dir string
}

const diskPassphrase = "correct horse battery staple"

// newDisk has the passphrase in keyslot 0.
func newDisk(t *testing.T) *disk {
	t.Helper()
	dir, err := os.MkdirTemp("", "luksmediad-disk") // not t.TempDir: see TestScripts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &disk{t, dir}
	d.must(os.Chmod(dir, 0o755))
	d.file("disk.luks", "", 0o600)
	d.must(os.Truncate(d.container(), 20<<20))
	d.file("passphrase", diskPassphrase, 0o600)
	d.run("cryptsetup", "luksFormat", "--batch-mode", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
		"--key-file="+d.path("passphrase"), d.container())
	return d
}

func (d *disk) path(name string) string { return filepath.Join(d.dir, name) }

func (d *disk) container() string { return d.path("disk.luks") }

func (d *disk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// file makes a file that belongs to the user whom the program runs as.
func (d *disk) file(name, content string, mode os.FileMode) string {
	d.t.Helper()
	path := d.path(name)
	d.must(os.WriteFile(path, []byte(content), mode))
	if os.Geteuid() == 0 {
		d.must(os.Chown(path, 65534, 65534))
	}
	return path
}

// run runs a program of this machine, with the passphrase where systemd looks for one.
func (d *disk) run(name string, args ...string) string {
	d.t.Helper()
	cmd := exec.Command(name, args...)
	if cmd.Err != nil { // not on the path of an ordinary user
		cmd = exec.Command(filepath.Join("/usr/sbin", name), args...)
	}
	cmd.Env = append(os.Environ(), "PASSWORD="+diskPassphrase, "NEWPIN=1234", "LC_ALL=C", "PATH="+command.Path)
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	if err := cmd.Run(); err != nil {
		d.t.Fatalf("%s %v: %v\n%s", name, args, err, &messages)
	}
	return out.String()
}

// addKey puts content into a keyslot, and gives the file that holds it.
func (d *disk) addKey(keyslot int, content string) string {
	d.t.Helper()
	path := d.file(fmt.Sprint("key", keyslot), content, 0o400)
	d.run("cryptsetup", "luksAddKey", "--batch-mode", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
		"--key-file="+d.path("passphrase"), fmt.Sprintf("--key-slot=%d", keyslot), d.container(), path)
	return path
}

// addToken writes a token of a type for a keyslot with a key that nobody has.
func (d *disk) addToken(keyslot int, kind string) {
	d.t.Helper()
	d.addKey(keyslot, "nobody has "+kind)
	token := d.file("token", fmt.Sprintf(`{"type":%q,"keyslots":["%d"]}`, kind, keyslot), 0o600)
	d.run("cryptsetup", "token", "import", "--disable-external-tokens", "--json-file="+token, d.container())
}

// enrol has systemd enrol a TPM token into the next keyslot.
func (d *disk) enrol(s *swtpm.TPM, args ...string) {
	d.t.Helper()
	d.run("systemd-cryptenroll", append([]string{"--tpm2-device=" + s.TCTI(), d.container()}, args...)...)
	s.Restart() // systemd 252 leaves its sessions in a TPM that has no resource manager
	d.share(s)
}

// systemdVersion: since 256 keys without PIN are not subject to lockout.
func (d *disk) systemdVersion() (version int) {
	d.t.Helper()
	_, err := fmt.Sscanf(d.run("systemd-cryptenroll", "--version"), "systemd %d", &version)
	d.must(err)
	return version
}

// share lets the user whom the program runs as connect to the emulator.
func (d *disk) share(s *swtpm.TPM) {
	d.t.Helper()
	d.must(errors.Join(os.Chmod(filepath.Dir(s.Socket()), 0o755), os.Chmod(s.Socket(), 0o666)))
}

// sign accepts the value that a PCR has now, as systemd-measure(1) does. It gives the files of public key and signature.
func (d *disk) sign(s *swtpm.TPM, pcr int) (public, signatures string) {
	d.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	d.must(err)
	device, err := tpm2.Open(d.t.Context(), s.TCTI())
	d.must(err)
	values, err := device.ReadPCRs(d.t.Context(), tpm2.SHA256, []int{pcr})
	d.must(errors.Join(err, device.Close()))
	policy, err := tpm2.Policy{Bank: tpm2.SHA256, PCRs: []int{pcr}}.Digest(values)
	d.must(err)
	sum := sha256.Sum256(policy)
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	d.must(err)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	d.must(err)
	public = d.file("public.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})), 0o644)
	entry := fmt.Sprintf(`{"sha256":[{"pcrs":[%d],"pkfp":"%x","pol":"%x","sig":%q}]}`, pcr,
		sha256.Sum256(x509.MarshalPKCS1PublicKey(&key.PublicKey)), policy, base64.StdEncoding.EncodeToString(signature))
	return public, d.file("signatures.json", entry, 0o644)
}

// overwrite changes bytes of the container.
func (d *disk) overwrite(offset int64, content []byte) {
	d.t.Helper()
	file, err := os.OpenFile(d.container(), os.O_WRONLY, 0)
	d.must(err)
	_, err = file.WriteAt(content, offset)
	d.must(errors.Join(err, file.Close()))
}

func (d *disk) sum() [sha256.Size]byte {
	d.t.Helper()
	content, err := os.ReadFile(d.container())
	d.must(err)
	return sha256.Sum256(content)
}

// headerBytes is the size of one copy of the header that cryptsetup writes by default.
const headerBytes = 16 << 10

// forge changes the JSON of both copies and computes their checksums anew, as an attacker would.
func (d *disk) forge(change func(document map[string]any)) {
	d.t.Helper()
	for offset := int64(0); offset <= headerBytes; offset += headerBytes {
		raw := d.header(offset)
		var document map[string]any
		d.must(json.Unmarshal(bytes.TrimRight(raw[4096:], "\x00"), &document))
		change(document)
		text, err := json.Marshal(document)
		d.must(err)
		clear(raw[4096:])
		copy(raw[4096:], text)
		clear(raw[448:512]) // LUKS2 On-Disk Format, section 2.1: csum
		sum := sha256.Sum256(raw)
		copy(raw[448:], sum[:])
		d.overwrite(offset, raw)
	}
}

func (d *disk) header(offset int64) []byte {
	d.t.Helper()
	content, err := os.ReadFile(d.container())
	d.must(err)
	return slices.Clone(content[offset:][:headerBytes])
}

// answer is what the program printed and how it ended.
type answer struct {
	t        *testing.T
	code     int
	out, err string
}

// ask runs the program on the container and wants not a bit of it to change.
func (d *disk) ask(words string, args ...string) answer {
	d.t.Helper()
	before := d.sum()
	a := runProgram(d.t, append(append(strings.Fields(words), "--container", d.container()), args...)...)
	if d.sum() != before {
		d.t.Errorf("%s %v has written to the container", words, args)
	}
	return a
}

func runProgram(t *testing.T, args ...string) answer {
	t.Helper()
	cmd := exec.Command("luksmediad", args...)
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	err := cmd.Run()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		t.Fatal(err)
	}
	return answer{t, cmd.ProcessState.ExitCode(), out.String(), messages.String()}
}

// lines parses one JSON object per line.
func lines[T any](a answer) []T {
	a.t.Helper()
	var all []T
	for line := range strings.Lines(a.out) {
		var value T
		if err := json.Unmarshal([]byte(line), &value); err != nil {
			a.t.Fatalf("%v: %s", err, line)
		}
		all = append(all, value)
	}
	return all
}
