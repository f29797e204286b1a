//go:build interop

package interop

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"os"
	"strings"
	"sync"

	"luksmediad/pkg/unlock/tpm2"
)

// What systemd makes for luksmediad.

const (
	opens      = "opens"
	leftToNext = "named, left to the next source"
)

// format has the cryptsetup of the tree make the container, which the passphrase opens.
func (c *cell) format() {
	c.Helper()
	c.blank()
	c.tree.must(c.T, "/usr/sbin/cryptsetup", "luksFormat", "--batch-mode", "--type=luks2", "--pbkdf=argon2id",
		"--pbkdf-force-iterations=4", "--pbkdf-memory=1024", c.image(), c.path("passphrase"))
}

// enrol has systemd-cryptenroll add a keyslot.
func (c *cell) enrol(args ...string) string {
	c.Helper()
	return c.tree.mustWith(c.T, []string{"NEWPIN=" + pin}, "/usr/bin/systemd-cryptenroll",
		append(append([]string{"--unlock-key-file=" + c.path("passphrase")}, args...), c.image())...)
}

// enrolTPM has it seal to the TPM, which then reboots.
func (c *cell) enrolTPM(args ...string) {
	c.Helper()
	c.format()
	c.enrol(append([]string{"--tpm2-device=" + c.tpm.TCTI()}, args...)...)
	c.reboot()
	c.keepToken()
}

// withPIN are the options for a PIN, as it is hardened by default. Version 262 would measure for seconds how hard.
func (tr *tree) withPIN() []string {
	if tr.systemd < 262 {
		return []string{"--tpm2-with-pin=yes"}
	}
	return []string{"--tpm2-with-pin=yes", "--tpm2-argon2id-memory=16M", "--tpm2-argon2id-iterations=4", "--tpm2-argon2id-parallelism=2"}
}

// sealed is a shape that the options of systemd-cryptenroll make.
func sealed(args ...string) func(*cell) string {
	return func(c *cell) string {
		c.startTPM()
		c.enrolTPM(args...)
		c.wantOK(c.keyTest(), "tpm2")
		return opens
	}
}

// sealedWithPIN is one that also asks for the PIN: without it there is no way in, and with another neither.
func sealedWithPIN(args ...string) func(*cell) string {
	return func(c *cell) string {
		c.startTPM()
		c.enrolTPM(args...)
		if s := c.find(c.keyTest(), "tpm2"); s.Result != "pin_needed" {
			c.Errorf("without PIN luksmediad says %+v", s)
		}
		if s := c.find(c.keyTest("--pin-file", c.write("wrong", []byte("4321"))), "tpm2"); s.Result != "tpm_pin" {
			c.Errorf("with a wrong PIN luksmediad says %+v", s)
		}
		c.reboot()
		c.wantOK(c.keyTest("--pin-file", c.write("pin", []byte(pin))), "tpm2")
		return opens
	}
}

// sealedPBKDF2 has to say so where another way to harden a PIN is the default.
func sealedPBKDF2(args ...string) func(*cell) string {
	return func(c *cell) string {
		how := "--tpm2-with-pin=yes"
		if c.tree.systemd >= 262 {
			how = "--tpm2-with-pin=direct"
		}
		return sealedWithPIN(append(args, how)...)(c)
	}
}

// sealedSHA1 takes SHA-256 from the TPM where systemd cannot be told to use the other bank.
func sealedSHA1(c *cell) string {
	if c.tree.systemd >= 255 {
		return sealed("--tpm2-pcrs=7:sha1")(c)
	}
	c.startTPM()
	c.tpm.Deallocate(sha256)
	c.reboot()
	c.enrolTPM("--tpm2-pcrs=7")
	c.wantOK(c.keyTest(), "tpm2")
	return opens
}

// signed is a policy that the tree's systemd-measure signs, for whatever else the options say.
func signed(measure []string, withPIN bool, args ...string) func(*cell) string {
	return func(c *cell) string {
		c.startTPM()
		signature := c.sign(measure...)
		c.boot()
		if withPIN {
			args = append(args, c.tree.withPIN()...)
		}
		c.enrolTPM(append(args, "--tpm2-public-key="+c.path("public.pem"), "--tpm2-public-key-pcrs=11",
			"--tpm2-signature="+signature)...)
		offer := []string{"--tpm2-signature", signature, "--pin-file", c.write("pin", []byte(pin))}
		c.wantOK(c.keyTest(offer...), "tpm2")
		c.measure(11, "something else")
		if s := c.find(c.keyTest(offer...), "tpm2"); s.Result != "tpm_policy" {
			c.Errorf("after another boot luksmediad says %+v", s)
		}
		return opens
	}
}

// signingKey takes long to make where programs are slow.
var signingKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// sign has systemd-measure sign what boot measures.
func (c *cell) sign(args ...string) string {
	c.Helper()
	key, err := signingKey()
	if err != nil {
		c.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		c.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		c.Fatal(err)
	}
	c.write("private.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	c.write("public.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	output := c.tree.must(c.T, "/usr/lib/systemd/systemd-measure", append(args, "sign", "--json=short",
		"--tpm2-device="+c.tpm.TCTI(), "--linux="+c.write("kernel", []byte("kernel")), "--bank=sha256", "--phase=enter-initrd",
		"--private-key="+c.path("private.pem"), "--public-key="+c.path("public.pem"))...)
	c.reboot()
	return c.write("signature.json", []byte(output))
}

// boot measures what systemd-stub and systemd would: for each section of the kernel image its name with a zero byte and
// its content, then the phase (systemd-measure(1)).
func (c *cell) boot() {
	for _, data := range []string{".linux\x00", "kernel", "enter-initrd"} {
		c.measure(11, data)
	}
}

// sealedUnderRSA is on a TPM without elliptic curves, or one on which somebody has made an RSA storage root key.
func sealedUnderRSA(c *cell) string {
	c.startTPM()
	if c.tree.systemd < 254 {
		c.format()
		c.enrol("--tpm2-pcrs=7", "--tpm2-device="+withoutECC(c.T, c.tpm))
		c.reboot()
		c.keepToken()
	} else {
		c.makeSRK("rsa2048")
		c.enrolTPM("--tpm2-pcrs=7")
	}
	c.wantOK(c.keyTest(), "tpm2")
	return opens
}

// makeSRK keeps a key of an algorithm at the handle of the storage root key, as systemd does since 254, which takes RSA
// where there is no curve (src/shared/tpm2-util.c, tpm2_get_best_srk_template).
func (c *cell) makeSRK(algorithm string) {
	c.Helper()
	context := c.path("srk.context")
	const attributes = "--attributes=fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
	for _, command := range [][]string{
		{"tpm2_createprimary", "--hierarchy=o", "--key-algorithm=" + algorithm + ":null:aes128cfb", attributes, "--key-context=" + context},
		{"tpm2_evictcontrol", "--hierarchy=o", "--object-context=" + context, "0x81000001"},
		{"tpm2_flushcontext", "--transient-object"},
	} {
		c.tool(command...)
	}
}

// tool runs one of tpm2-tools.
func (c *cell) tool(command ...string) {
	c.Helper()
	r := run(c.T, "", nil, "/usr/bin/"+command[0], append([]string{"--tcti=" + c.tpm.TCTI()}, command[1:]...)...)
	if r.code != 0 {
		c.Fatalf("%s: exit code %d\n%s", strings.Join(command, " "), r.code, r)
	}
}

// sealedOffline knows nothing of the TPM but the public part of its storage root key and a PCR value to be.
func sealedOffline(algorithm string) func(*cell) string {
	return func(c *cell) string {
		c.startTPM()
		c.makeSRK(algorithm)
		c.tool("tpm2_readpublic", "--object-context=0x81000001", "--output="+c.path("srk"))
		c.format()
		c.enrol("--tpm2-device-key="+c.path("srk"), "--tpm2-pcrs=7:sha256="+hex.EncodeToString(c.pcr(7)))
		c.reboot()
		c.keepToken()
		c.wantOK(c.keyTest(), "tpm2")
		return opens
	}
}

func (c *cell) pcr(number int) []byte {
	c.Helper()
	device, err := tpm2.Open(c.Context(), c.tpm.TCTI())
	if err != nil {
		c.Fatal(err)
	}
	defer device.Close()
	values, err := device.ReadPCRs(c.Context(), tpm2.SHA256, []int{number})
	if err != nil {
		c.Fatal(err)
	}
	return values[number]
}

// locked is a policy kept by systemd-pcrlock, besides what the options say. It is not for luksmediad, which has to go on
// with the next source.
func locked(reason string, args ...string) func(*cell) string {
	return func(c *cell) string {
		c.startTPM()
		c.format()
		c.sign()
		c.tree.mustWith(c.T, []string{
			"SYSTEMD_TPM2_DEVICE=" + c.tpm.TCTI(), "SYSTEMD_MEASURE_LOG_FIRMWARE=" + c.write("firmware.log", emptyEventLog()),
		}, "/usr/lib/systemd/systemd-pcrlock", "make-policy", "--pcr=16", "--policy="+c.path("pcrlock.json"), "--recovery-pin=hide")
		args := append([]string{"--tpm2-pcrs=", "--tpm2-pcrlock=" + c.path("pcrlock.json")}, args...)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "PUBLIC", c.path("public.pem"))
		}
		c.enrol(append(args, "--tpm2-device="+c.tpm.TCTI())...)
		c.reboot()
		c.keepToken()
		slots := c.keyTest("--passphrase-file", c.path("passphrase"))
		s := c.find(slots, "tpm2")
		if s.Result != "token_unsupported" || len(s.Failures) != 1 || !strings.Contains(s.Failures[0].Text, reason) {
			c.Errorf("luksmediad says %+v, want it to name %s", s, reason)
		}
		c.wantOK(slots, "passphrase")
		return leftToNext
	}
}

// emptyEventLog has only the header of a log of SHA-256 events (TCG PC Client Platform Firmware Profile, "Specification ID
// Version Event"). PCR 16 is nobody's, so that its value agrees with the log.
func emptyEventLog() []byte {
	event := append([]byte("Spec ID Event03\x00"),
		0, 0, 0, 0, // platform class: client
		0, 2, 0, 2, // version 2.0, errata 0, 64-bit
		1, 0, 0, 0, 0x0b, 0, 32, 0, // one algorithm, SHA-256, of 32 bytes
		0) // no vendor's information
	log := binary.LittleEndian.AppendUint32(nil, 0) // PCR 0
	log = binary.LittleEndian.AppendUint32(log, 3)  // EV_NO_ACTION
	log = append(log, make([]byte, 20)...)          // SHA-1 of nothing measured
	log = binary.LittleEndian.AppendUint32(log, uint32(len(event)))
	return append(log, event...)
}

func recoveryKey(c *cell) string {
	c.format()
	key := strings.TrimSpace(c.enrol("--recovery-key"))
	c.wantOK(c.keyTest("--passphrase-file", c.write("recovery", []byte(key+"\n"))), "recovery")
	typed := strings.ToUpper(strings.ReplaceAll(key, "-", ""))
	c.wantOK(c.keyTest("--passphrase-file", c.write("recovery", []byte(typed))), "recovery")
	return opens
}

func passphraseSlot(c *cell) string {
	c.format()
	c.wantOK(c.keyTest("--passphrase-file", c.path("passphrase")), "passphrase")
	c.write("new", []byte("another"))
	c.tree.mustWith(c.T, []string{"NEWPASSWORD=another"}, "/usr/bin/systemd-cryptenroll", "--password",
		"--unlock-key-file="+c.path("passphrase"), c.image())
	slots := c.keyTest("--passphrase-file", c.path("new"))
	if len(slots) != 2 || slots[1].Result != "ok" {
		c.Errorf("luksmediad says %+v", slots)
	}
	return opens
}

func keyFileSlot(c *cell) string {
	c.format()
	key := make([]byte, 64)
	rand.Read(key)
	c.tree.must(c.T, "/usr/sbin/cryptsetup", "luksAddKey", "--batch-mode", "--key-file="+c.path("passphrase"),
		"--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", c.image(), c.write("key", key))
	if err := os.Chmod(c.path("key"), 0o400); err != nil {
		c.Fatal(err)
	}
	c.wantOK(c.keyTest("--keyfile", c.path("key")), "keyfile")
	return opens
}
