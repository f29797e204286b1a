//go:build interop

package interop

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// What luksmediad makes for systemd.

const (
	opensListsWipes = "opens, lists, wipes"
	listsWipes      = "not readable¹; lists, wipes"
)

var cryptsetup = unlock.Cryptsetup{Runner: moderate{}}

// moderate has cryptsetup make the keyslot of a passphrase without measuring for seconds what it may cost.
type moderate struct{ command.Runner }

func (m moderate) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if slices.Contains(args, string(unlock.HumanPBKDF)) {
		args = append(args, "--pbkdf-force-iterations=4", "--pbkdf-memory=65536")
	}
	return m.Runner.Run(ctx, stdin, extra, name, args...)
}

// make makes the container, with a machine's key in keyslot 0 and the given one in keyslot 1.
func (c *cell) make(key *secret.Key, pbkdf unlock.PBKDF) {
	c.Helper()
	c.blank()
	first, err := secret.Random(64)
	if err != nil {
		c.Fatal(err)
	}
	defer first.Wipe()
	options := unlock.FormatOptions{UUID: "6f9619ff-8b86-4011-b42d-00cf4fc964ff", Label: "interop", SectorBytes: 4096}
	if err := cryptsetup.Format(c.Context(), c.image(), first, options); err != nil {
		c.Fatal(err)
	}
	if err := cryptsetup.AddKey(c.Context(), c.image(), &unlock.Way{Keyslots: []int{0}, Key: first}, key, 1, pbkdf); err != nil {
		c.Fatal(err)
	}
}

// seals has luksmediad seal a key on a TPM that was prepared.
func seals(options tpm2.SealOptions, prepare ...func(*cell)) func(*cell) string {
	return func(c *cell) string {
		c.startTPM()
		for _, f := range prepare {
			f(c)
		}
		c.seal(options)
		c.reboot()
		return c.systemdOpens()
	}
}

// sealsWithPIN asks for the PIN as well.
func sealsWithPIN(options tpm2.SealOptions) func(*cell) string {
	return func(c *cell) string {
		var err error
		if options.PIN, err = secret.From([]byte(pin)); err != nil {
			c.Fatal(err)
		}
		defer options.PIN.Wipe()
		return seals(options)(c)
	}
}

func (c *cell) seal(options tpm2.SealOptions) {
	c.Helper()
	key, err := secret.Random(32)
	if err != nil {
		c.Fatal(err)
	}
	defer key.Wipe()
	device, err := tpm2.Open(c.Context(), c.tpm.TCTI())
	if err != nil {
		c.Fatal(err)
	}
	defer device.Close()
	token, err := device.Seal(c.Context(), key, options)
	if err != nil {
		c.Fatal(err)
	}
	token.Keyslots = []int{1}
	text, err := key.Base64()
	if err != nil {
		c.Fatal(err)
	}
	defer text.Wipe()
	c.make(text, unlock.MinimalPBKDF)
	object, err := json.Marshal(token)
	if err != nil {
		c.Fatal(err)
	}
	c.importToken(object)
}

func (c *cell) importToken(object []byte) {
	c.Helper()
	if err := cryptsetup.ImportToken(c.Context(), c.image(), object); err != nil {
		c.Fatal(err)
	}
}

// systemdOpens has systemd open the container by its TPM token, list and wipe it. Version 254 was the first to look at
// tpm2_srk: the others load the object under another key.
func (c *cell) systemdOpens() string {
	c.Helper()
	attached, said := c.attach("-", "tpm2-device="+c.tpm.TCTI()+",headless,tries=1", "PIN="+pin)
	switch {
	case c.tree.systemd >= 254:
		if !attached {
			c.Errorf("systemd-cryptsetup says\n%s", said)
		}
		c.wipe("tpm2", "tpm2")
		return opensListsWipes
	case attached || !strings.Contains(said, "integrity check failed"):
		c.Errorf("attached: %v, systemd-cryptsetup says\n%s", attached, said)
	}
	c.wipe("tpm2", "tpm2")
	return listsWipes
}

// attach has systemd-cryptsetup open the container, and closes it again.
func (c *cell) attach(keyFile, options string, env ...string) (attached bool, said string) {
	c.Helper()
	const program, name = "/usr/lib/systemd/systemd-cryptsetup", "luksmediad-interop"
	r := run(c.T, c.tree.root, env, program, "attach", name, c.image(), keyFile, options)
	mapping, err := unlock.FindMapping(name)
	if err != nil {
		c.Fatal(err)
	}
	if (mapping != nil) != (r.code == 0) {
		c.Errorf("systemd-cryptsetup: exit code %d, mapping %+v", r.code, mapping)
	}
	if mapping == nil {
		return false, r.String()
	}
	c.tree.must(c.T, program, "detach", name)
	return true, r.String()
}

// wipe has systemd-cryptenroll list keyslot 1 as of a kind and remove it. The token has to go with it.
func (c *cell) wipe(kind, what string) {
	c.Helper()
	list := func() bool {
		for line := range strings.Lines(c.tree.must(c.T, "/usr/bin/systemd-cryptenroll", c.image())) {
			if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "1" && fields[1] == kind {
				return true
			}
		}
		return false
	}
	if !list() {
		c.Errorf("systemd-cryptenroll lists no keyslot 1 of kind %s", kind)
	}
	c.tree.must(c.T, "/usr/bin/systemd-cryptenroll", "--wipe-slot="+what, c.image())
	if list() {
		c.Errorf("systemd-cryptenroll still lists the keyslot of kind %s", kind)
	}
	header := c.header()
	if err := header.Validate(imageBytes); err != nil {
		c.Error(err)
	}
	if len(header.Metadata.Keyslots) != 1 || len(header.Metadata.Tokens) != 0 {
		c.Errorf("after the wipe there are %d keyslots and %d tokens", len(header.Metadata.Keyslots), len(header.Metadata.Tokens))
	}
}

// typed is what systemd-cryptsetup takes for what a person has typed.
func (c *cell) typed(text []byte) string {
	c.Helper()
	folder := c.path("credentials")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		c.Fatal(err)
	}
	c.write(filepath.Join("credentials", "cryptsetup.passphrase"), text)
	return "CREDENTIALS_DIRECTORY=" + folder
}

func (c *cell) wantAttached(attached bool, said string) {
	c.Helper()
	if !attached {
		c.Errorf("systemd-cryptsetup says\n%s", said)
	}
}

// makesRecoveryKey is typed as it was printed: other than luksmediad, systemd-cryptsetup takes it in no other form.
func makesRecoveryKey(c *cell) string {
	key, err := secret.RecoveryKey()
	if err != nil {
		c.Fatal(err)
	}
	defer key.Wipe()
	c.make(key, unlock.MinimalPBKDF)
	c.importToken([]byte(`{"type":"` + unlock.TokenRecovery + `","keyslots":["1"]}`))
	c.wantAttached(c.attach("-", "tries=1", c.typed(key.Bytes())))
	c.wipe("recovery", "recovery")
	return opensListsWipes
}

func makesPassphrase(c *cell) string {
	key, err := secret.From([]byte(passphrase))
	if err != nil {
		c.Fatal(err)
	}
	defer key.Wipe()
	c.make(key, unlock.HumanPBKDF)
	c.wantAttached(c.attach("-", "tries=1", c.typed([]byte(passphrase))))
	c.wipe("password", "1")
	return opensListsWipes
}

func makesKeyFile(c *cell) string {
	key, err := secret.Random(64)
	if err != nil {
		c.Fatal(err)
	}
	defer key.Wipe()
	c.make(key, unlock.MinimalPBKDF)
	c.wantAttached(c.attach(c.write("key", key.Bytes()), "headless,tries=1"))
	c.wipe("password", "1")
	return opensListsWipes
}
