package tpm2

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/test/swtpm"
)

const password = "correct horse battery staple"

// run runs a program of this machine, with the password where it looks for one.
func run(t *testing.T, stdin []byte, name string, args ...string) string {
	t.Helper()
	output, err := tryRun(stdin, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return output
}

func tryRun(stdin []byte, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	// /usr/sbin is not on the path of an ordinary user.
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "PASSWORD="+password, "LC_ALL=C")
	if path, err := exec.LookPath(name); err != nil && filepath.Base(name) == name {
		cmd.Path, cmd.Err = filepath.Join("/usr/sbin", name), nil
	} else if err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	cmd.Stdin = bytes.NewReader(stdin)
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// newImage makes a LUKS2 container that the password opens.
func newImage(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 20<<20); err != nil {
		t.Fatal(err)
	}
	run(t, []byte(password), "cryptsetup", "luksFormat", "--batch-mode", "--type=luks2", "--key-file=-",
		"--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", image)
	return image
}

// tokenOf exports the only systemd-tpm2 token of an image.
func tokenOf(t *testing.T, image string) *Token {
	t.Helper()
	token, err := ParseToken([]byte(run(t, nil, "cryptsetup", "token", "export", "--token-id=0", image)))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// wantOpens unseals the token and has cryptsetup try its keyslot with what came out.
func wantOpens(t *testing.T, s *swtpm.TPM, image string, token *Token) {
	t.Helper()
	wantOpensWith(t, s, image, token, UnsealOptions{})
}

func wantOpensWith(t *testing.T, s *swtpm.TPM, image string, token *Token, opts UnsealOptions) {
	t.Helper()
	key, err := unsealWith(t, s, token, opts)
	if err != nil {
		t.Errorf("Unseal: %v", err)
		return
	}
	defer key.Wipe()
	testPassphrase(t, image, token.Keyslots[0], key)
}

func testPassphrase(t *testing.T, image string, keyslot int, key *secret.Key) {
	t.Helper()
	text, err := key.Base64()
	if err != nil {
		t.Fatal(err)
	}
	defer text.Wipe()
	run(t, text.Bytes(), "cryptsetup", "open", "--test-passphrase", "--key-file=-",
		fmt.Sprintf("--key-slot=%d", keyslot), image)
}

func enrol(t *testing.T, s *swtpm.TPM, image string, args ...string) {
	t.Helper()
	run(t, nil, "systemd-cryptenroll", append([]string{"--tpm2-device=" + s.TCTI(), image}, args...)...)
	// systemd 252 leaves its sessions in a TPM that has no resource manager.
	s.Restart()
}

func TestWeUnsealWhatSystemdEnrolled(t *testing.T) {
	for _, pcrs := range []string{"7", "0+7+14", "0+1+2+3+4+5+7+8+9+14", ""} {
		t.Run("PCRs "+pcrs, func(t *testing.T) {
			s := swtpm.Start(t)
			measure := func() {
				for pcr := range maxPCRs {
					s.Extend(pcr%16, "boot")
				}
			}
			measure()
			image := newImage(t)
			enrol(t, s, image, "--tpm2-pcrs="+pcrs)
			measure()
			token := tokenOf(t, image)
			wantOpens(t, s, image, token)
			if same, err := token.PolicyMatches(readPCRs(t, s, SHA256, token.PCRs), nil); !same || err != nil {
				t.Errorf("PolicyMatches = %v, %v for what was just unsealed", same, err)
			}
		})
	}
}

// Not among them is a PIN like 0226, whose authorisation value ends in zero: systemd
// 252 itself cannot use one, since only version 254 learned to leave the zeros out.
func TestWeUnsealSystemdsPIN(t *testing.T) {
	inside := pinWith(t, func(auth []byte) bool { return len(auth) == digestSize && bytes.IndexByte(auth, 0) > 0 })
	for _, pin := range []string{"1234", inside, "långt lösenord"} {
		t.Run(pin, func(t *testing.T) {
			s := swtpm.Start(t)
			s.Extend(7, "boot")
			image := newImage(t)
			t.Setenv("NEWPIN", pin)
			enrol(t, s, image, "--tpm2-pcrs=7", "--tpm2-with-pin=yes")
			s.Extend(7, "boot")
			token := tokenOf(t, image)
			_, err := unseal(t, s, token)
			wantClass(t, err, ErrPINNeeded)
			_, err = unsealWith(t, s, token, UnsealOptions{PIN: newPIN(t, "wrong")})
			wantClass(t, err, ErrPIN)
			wantOpensWith(t, s, image, token, UnsealOptions{PIN: newPIN(t, pin)})
			if same, err := token.PolicyMatches(readPCRs(t, s, SHA256, token.PCRs), nil); !same || err != nil {
				t.Errorf("PolicyMatches = %v, %v", same, err)
			}
		})
	}
}

// systemd takes SHA-1 where the TPM has no SHA-256.
func TestWeUnsealSystemdsSHA1(t *testing.T) {
	s := swtpm.Start(t)
	s.Deallocate(tpm2.TPMAlgSHA256)
	s.Extend(7, "boot")
	image := newImage(t)
	enrol(t, s, image, "--tpm2-pcrs=7")
	s.Extend(7, "boot")
	token := tokenOf(t, image)
	if token.Bank != SHA1 {
		t.Errorf("systemd took bank %q", token.Bank)
	}
	wantOpens(t, s, image, token)
	if same, err := token.PolicyMatches(readPCRs(t, s, SHA1, token.PCRs), nil); !same || err != nil {
		t.Errorf("PolicyMatches = %v, %v", same, err)
	}
}

// systemd-cryptenroll unseals what it sealed with the signatures it is given, and so finds ours good.
func TestWeUnsealSystemdsSignedPolicy(t *testing.T) {
	signer := newSigner(t)
	dir := t.TempDir()
	public := write(t, filepath.Join(dir, "public.pem"), signerPEM(signer))
	for name, args := range map[string][]string{
		"alone":     {"--tpm2-pcrs="},
		"with PCRs": {"--tpm2-pcrs=7"},
		"with PIN":  {"--tpm2-pcrs=7", "--tpm2-with-pin=yes"},
	} {
		t.Run(name, func(t *testing.T) {
			s := swtpm.Start(t)
			s.Extend(7, "boot")
			s.Extend(11, "kernel")
			t.Setenv("NEWPIN", "1234")
			image := newImage(t)
			signed := signaturesJSON(SHA256, sign(t, signer, SHA256, []int{11}, readPCRs(t, s, SHA256, []int{11})))
			enrol(t, s, image, append(args, "--tpm2-public-key="+public, "--tpm2-public-key-pcrs=11",
				"--tpm2-signature="+write(t, filepath.Join(dir, "signatures.json"), signed))...)
			s.Extend(7, "boot")
			s.Extend(11, "kernel")
			token := tokenOf(t, image)
			opts := UnsealOptions{PIN: newPIN(t, "1234"), Signatures: must(ParseSignatures(signed))}
			wantOpensWith(t, s, image, token, opts)
			values := readPCRs(t, s, SHA256, []int{7, 11})
			if same, err := token.PolicyMatches(values, opts.Signatures); !same || err != nil {
				t.Errorf("PolicyMatches = %v, %v", same, err)
			}
			s.Extend(11, "another")
			_, err := unsealWith(t, s, token, opts)
			wantClass(t, err, ErrPolicy)
		})
	}
}

// systemd-measure signs what systemd-stub will measure: for each section of the
// kernel image its name with a zero byte, then its content (systemd-measure(1)).
func TestWeUnsealWhatSystemdMeasureSigned(t *testing.T) {
	s := swtpm.Start(t)
	signer := newSigner(t)
	dir := t.TempDir()
	public := write(t, filepath.Join(dir, "public.pem"), signerPEM(signer))
	private := write(t, filepath.Join(dir, "private.pem"), pem.EncodeToMemory(&pem.Block{
		Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(signer)),
	}))
	kernel := write(t, filepath.Join(dir, "kernel"), []byte("kernel"))
	signed := []byte(run(t, nil, "/lib/systemd/systemd-measure", "sign", "--json=short", "--tpm2-device="+s.TCTI(),
		"--linux="+kernel, "--bank=sha256", "--bank=sha1", "--phase=enter-initrd",
		"--private-key="+private, "--public-key="+public))
	s.Restart()
	image := newImage(t)
	enrol(t, s, image, "--tpm2-pcrs=", "--tpm2-public-key="+public, "--tpm2-public-key-pcrs=11")
	token := tokenOf(t, image)
	signatures, err := ParseSignatures(signed)
	if err != nil {
		t.Fatalf("%v: %s", err, signed)
	}
	_, err = unsealWith(t, s, token, UnsealOptions{Signatures: signatures})
	wantClass(t, err, ErrPolicy)
	for _, measured := range []string{".linux\x00", "kernel", "enter-initrd"} {
		s.Extend(11, measured)
	}
	wantOpensWith(t, s, image, token, UnsealOptions{Signatures: signatures})
}

func write(t *testing.T, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fault 40: dictionary-attack lockout. systemd up to 255 seals objects that are subject to it.
func TestSystemdsTokenDuringLockout(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	image := newImage(t)
	enrol(t, s, image, "--tpm2-pcrs=7")
	s.Extend(7, "boot")
	s.Lockout()
	token := tokenOf(t, image)
	commands := 0
	_, err := with(t, s, func(d *Device) (*secret.Key, error) {
		d.stream = &interposer{stream: d.stream, onWrite: func([]byte) []byte { commands++; return nil }}
		return d.Unseal(t.Context(), token)
	})
	wantClass(t, err, ErrLockout)
	var lockout *LockoutError
	if !errors.As(err, &lockout) || lockout.Recovery != 0 {
		t.Errorf("error is %v, want a LockoutError without end", err)
	}
	if commands > 8 {
		t.Errorf("a TPM in lockout was sent %d commands", commands)
	}
	wantNoHandles(t, s)
}

// fault 43: without a recorded storage root key the TPM itself tells that the object is not its own.
func TestSystemdsTokenOnAnotherTPM(t *testing.T) {
	s := swtpm.Start(t)
	image := newImage(t)
	enrol(t, s, image, "--tpm2-pcrs=")
	s.Replace()
	_, err := unseal(t, s, tokenOf(t, image))
	wantClass(t, err, ErrSRKMismatch)
	wantNoHandles(t, s)
}

// enrolOurs adds a keyslot and token of our own, as keyslot 1 and token 0.
func enrolOurs(t *testing.T, s *swtpm.TPM, image string, opts SealOptions) *Token {
	t.Helper()
	key := newKey(t)
	token := sealWith(t, s, key, opts)
	addToken(t, image, token, key)
	return token
}

func addToken(t *testing.T, image string, token *Token, key *secret.Key) {
	t.Helper()
	text, err := key.Base64()
	if err != nil {
		t.Fatal(err)
	}
	defer text.Wipe()
	file := write(t, filepath.Join(t.TempDir(), "key"), text.Bytes())
	run(t, []byte(password), "cryptsetup", "luksAddKey", "--key-file=-", "--new-key-slot=1",
		"--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", image, file)
	object, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	run(t, object, "cryptsetup", "token", "import", "--token-id=0", "--json-file=-", image)
}

func TestCryptsetupKeepsOurToken(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	image := newImage(t)
	pin := newPIN(t, "1234")
	token := enrolOurs(t, s, image, SealOptions{PCRs: []int{7}, PIN: pin})
	again := tokenOf(t, image)
	want, _ := token.MarshalJSON()
	got, _ := again.MarshalJSON()
	if !bytes.Equal(want, got) {
		t.Errorf("token came back as %s, was %s", got, want)
	}
	wantOpensWith(t, s, image, again, UnsealOptions{PIN: pin})
}

func TestSystemdListsAndWipesOurToken(t *testing.T) {
	s := swtpm.Start(t)
	for _, opts := range []SealOptions{{}, {PIN: newPIN(t, "1234")}} {
		image := newImage(t)
		enrolOurs(t, s, image, opts)
		if list := run(t, nil, "systemd-cryptenroll", image); !strings.Contains(list, "1 tpm2") {
			t.Errorf("systemd-cryptenroll lists\n%s", list)
		}
		run(t, nil, "systemd-cryptenroll", "--wipe-slot=tpm2", image)
		if list := run(t, nil, "systemd-cryptenroll", image); strings.Contains(list, "tpm2") {
			t.Errorf("after the wipe systemd-cryptenroll lists\n%s", list)
		}
	}
}

// systemd 254 was the first to look at tpm2_srk. The one of Debian 12 ignores it,
// loads our object under the legacy primary key and gets TPM_RC_INTEGRITY: by its
// own limits, which this test pins down, it cannot open what we enrol. With
// that of Debian 13 our token unlocks the container, to enrol one more key.
func TestSystemdUnsealsOursSince254(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	for _, pin := range []*secret.Key{nil, newPIN(t, "1234")} {
		image := newImage(t)
		enrolOurs(t, s, image, SealOptions{PCRs: []int{7}, PIN: pin})
		t.Setenv("PIN", "1234")
		if systemdVersion(t) >= 254 {
			t.Setenv("NEWPASSWORD", "another")
			run(t, nil, "systemd-cryptenroll", "--unlock-tpm2-device="+s.TCTI(), "--password", image)
			continue
		}
		if output := attach(t, s, image); !strings.Contains(output, "integrity check failed") {
			t.Errorf("systemd-cryptsetup says\n%s", output)
		}
	}
}

// Sealed in the shape of systemd up to 252, systemd unseals it with the same PIN
// and not with another. What it finds inside is not the keyslot's, so that it
// opens nothing where it could.
func TestSystemdUnsealsOurLegacyShape(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	const unsealed, wrongPIN = "Failed to activate with TPM2 acquired key", "authorization HMAC check failed"
	for _, test := range []struct {
		sealed    *secret.Key
		pin, want string
	}{
		{nil, "", unsealed},
		{newPIN(t, "1234"), "1234", unsealed},
		{newPIN(t, "1234"), "4321", wrongPIN},
	} {
		image := newImage(t)
		addToken(t, image, sealUnsalted(t, s, "ecc", newKey(t), test.sealed, 7), newKey(t))
		t.Setenv("PIN", test.pin)
		if output := attach(t, s, image); !strings.Contains(output, test.want) {
			t.Errorf("PIN %q: systemd-cryptsetup says\n%s\nwant %s", test.pin, output, test.want)
		}
	}
}

// attach has systemd-cryptsetup try to open the image, and gives what it says.
func attach(t *testing.T, s *swtpm.TPM, image string) string {
	t.Helper()
	output, err := tryRun(nil, "/lib/systemd/systemd-cryptsetup", "attach", "luksmediad-interop", image, "-",
		"tpm2-device="+s.TCTI()+",headless,tries=1")
	if err == nil {
		t.Errorf("systemd-cryptsetup opened the container:\n%s", output)
	}
	s.Restart()
	s.Extend(7, "boot")
	return output
}

func systemdVersion(t *testing.T) (version int) {
	t.Helper()
	if _, err := fmt.Sscanf(run(t, nil, "systemd-cryptenroll", "--version"), "systemd %d", &version); err != nil {
		t.Fatal(err)
	}
	return version
}

// tpm2-tss writes the same bytes for the same key, and unseals what we sealed.
func TestTPM2ToolsAgree(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	dir := t.TempDir()
	tool := func(name string, args ...string) {
		t.Helper()
		run(t, nil, name, append([]string{"--tcti=" + s.TCTI()}, args...)...)
	}
	for _, pin := range []*secret.Key{nil, newPIN(t, "1234")} {
		key := newKey(t)
		token := sealWith(t, s, key, SealOptions{PCRs: []int{7}, PIN: pin})
		file := func(name string) string { return filepath.Join(dir, name) }
		tool("tpm2_readpublic", "-c", "0x81000001", "-t", file("srk"))
		if serialized := must(os.ReadFile(file("srk"))); !bytes.Equal(serialized, token.SRK.marshal()) {
			t.Errorf("tpm2_srk is\n%s, tpm2-tss writes\n%s", hex.Dump(token.SRK.marshal()), hex.Dump(serialized))
		}
		tool("tpm2_load", "-C", "0x81000001", "-c", file("object"),
			"-r", write(t, file("private"), appendSized(nil, token.Private)),
			"-u", write(t, file("public"), appendSized(nil, token.Public)))
		tool("tpm2_flushcontext", "-t")
		tool("tpm2_startauthsession", "--policy-session", "-S", file("session"))
		tool("tpm2_policypcr", "-S", file("session"), "-l", "sha256:7")
		authorisation := "session:" + file("session")
		if pin != nil {
			tool("tpm2_policyauthvalue", "-S", file("session"))
			authorisation += "+hex:" + hex.EncodeToString(must(authValue(pin, token.Salt)).Bytes())
		}
		tool("tpm2_unseal", "-c", file("object"), "-p", authorisation, "-o", file("unsealed"))
		tool("tpm2_flushcontext", file("session"))
		if !bytes.Equal(must(os.ReadFile(file("unsealed"))), key.Bytes()) {
			t.Error("tpm2_unseal gave another key")
		}
	}
}
