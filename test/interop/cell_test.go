//go:build interop

package interop

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/test/swtpm"
)

const (
	passphrase = "correct horse battery staple"
	pin        = "1234"
	// imageBytes is that of the headers in pkg/unlock/luks2/testdata.
	imageBytes = 18 << 20
)

// cell is one field of the table: a shape, made by the one side for the other.
type cell struct {
	*testing.T
	tree *tree
	id   string // of the shape
	dir  string
	tpm  *swtpm.TPM
	// pcrs were extended since the TPM was started, and are again when it is restarted.
	pcrs map[int][]string
}

func newCell(t *testing.T, tr *tree, id string) *cell {
	t.Helper()
	c := &cell{T: t, tree: tr, id: id, dir: t.TempDir(), pcrs: map[int][]string{}}
	c.write("passphrase", []byte(passphrase))
	return c
}

// startTPM starts a fresh TPM that firmware has measured into.
func (c *cell) startTPM() {
	c.Helper()
	c.tpm = swtpm.Start(c)
	for _, pcr := range []int{0, 2, 4, 7, 14} {
		c.measure(pcr, "firmware")
	}
}

func (c *cell) measure(pcr int, data string) {
	c.Helper()
	c.pcrs[pcr] = append(c.pcrs[pcr], data)
	c.tpm.Extend(pcr, data)
}

// reboot also frees what systemd 252 leaves in a TPM without resource manager.
func (c *cell) reboot() {
	c.Helper()
	c.tpm.Restart()
	for pcr, measured := range c.pcrs {
		for _, data := range measured {
			c.tpm.Extend(pcr, data)
		}
	}
}

func (c *cell) path(name string) string { return filepath.Join(c.dir, name) }

func (c *cell) image() string { return c.path("image") }

func (c *cell) write(name string, content []byte) string {
	c.Helper()
	if err := os.WriteFile(c.path(name), content, 0o600); err != nil {
		c.Fatal(err)
	}
	return c.path(name)
}

// blank makes the file of the container.
func (c *cell) blank() {
	c.Helper()
	c.write("image", nil)
	if err := os.Truncate(c.image(), imageBytes); err != nil {
		c.Fatal(err)
	}
}

// header reads what is on the container now.
func (c *cell) header() *luks2.Header {
	c.Helper()
	file, err := os.Open(c.image())
	if err != nil {
		c.Fatal(err)
	}
	defer file.Close()
	header, err := luks2.Read(file, imageBytes)
	if err != nil {
		c.Fatal(err)
	}
	if len(header.Damage) > 0 {
		c.Errorf("damage: %v", header.Damage)
	}
	return header
}

// slot is a keyslot as luksmediad prints it.
type slot struct {
	Keyslot  *int
	Source   string
	Result   string
	Failures []struct{ Class, Text string }
}

// keyTest has the program itself test the keys.
func (c *cell) keyTest(args ...string) []slot {
	c.Helper()
	args = append([]string{"key", "test", "--json", "--container", c.image()}, args...)
	if c.tpm != nil {
		args = append(args, "--tpm2-device", c.tpm.TCTI())
	}
	r := run(c.T, "", nil, os.Getenv("LUKSMEDIAD_BINARY"), args...)
	var slots []slot
	for line := range strings.Lines(r.stdout) {
		var s slot
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			c.Fatalf("luksmediad %s: %v\n%s", strings.Join(args, " "), err, r)
		}
		slots = append(slots, s)
	}
	if len(slots) == 0 {
		c.Fatalf("luksmediad %s: exit code %d\n%s", strings.Join(args, " "), r.code, r)
	}
	return slots
}

// find gives the only keyslot of a source.
func (c *cell) find(slots []slot, source string) slot {
	c.Helper()
	var found []slot
	for _, s := range slots {
		if s.Source == source {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		c.Fatalf("%d keyslots of source %s in %+v", len(found), source, slots)
	}
	return found[0]
}

func (c *cell) wantOK(slots []slot, source string) {
	c.Helper()
	if s := c.find(slots, source); s.Result != "ok" {
		c.Errorf("luksmediad says %+v of the %s keyslot", s, source)
	}
}
