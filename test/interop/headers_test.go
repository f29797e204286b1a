//go:build interop

package interop

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// TestHeaders has the cryptsetup and the systemd of the tree make headers in every way that is likely to be met, and reads
// them. It prints them for test/interop/run -corpus.
func TestHeaders(t *testing.T) {
	tr := enter(t)
	t.Cleanup(func() { wantNoPrograms(t) })
	_, version, _ := strings.Cut(tr.version(t, "cryptsetup-bin"), ":") // behind Debian's epoch
	numbers := strings.SplitN(version, ".", 3)
	made := "cryptsetup" + numbers[0] + "." + numbers[1]
	for name, make := range map[string]func(*cell){
		made + "-default":                    (*cell).format,
		made + "-options":                    formatWithOptions,
		made + "-converted":                  convert,
		made + "-flags":                      keepFlags,
		made + "-reencrypted":                reencrypt,
		fmt.Sprintf("systemd%d", tr.systemd): enrolAll,
	} {
		t.Run(name, func(t *testing.T) {
			c := newCell(t, tr, name)
			make(c)
			if err := c.header().Validate(imageBytes); err != nil {
				t.Error(err)
			}
			c.keepHeader(name)
		})
	}
	t.Run(made+"-reencrypting", func(t *testing.T) {
		c := newCell(t, tr, "reencrypting")
		beginReencryption(c)
		if err := c.header().Validate(imageBytes); !errors.Is(err, luks2.ErrRefused) {
			t.Errorf("a reencryption under way is met with %v", err)
		}
		c.keepHeader(made + "-reencrypting")
	})
}

// cryptsetup runs that of the tree on the container.
func (c *cell) cryptsetup(args ...string) {
	c.Helper()
	c.tree.must(c.T, "/usr/sbin/cryptsetup", append(args, "--batch-mode", "--key-file="+c.path("passphrase"))...)
}

var quick = []string{"--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"}

func formatWithOptions(c *cell) {
	c.blank()
	c.cryptsetup("luksFormat", "--type=luks2", "--pbkdf=argon2i", "--pbkdf-force-iterations=4", "--pbkdf-memory=1024",
		"--label=media", "--subsystem=matrix", "--hash=sha512", "--key-size=256", "--sector-size=512", "--luks2-metadata-size=32k",
		"--luks2-keyslots-size=1m", c.image())
	c.cryptsetup(append([]string{"luksAddKey", "--key-slot=7", "--unbound", "--key-size=512", c.image(), c.path("passphrase")}, quick...)...)
	c.cryptsetup("config", "--key-slot=0", "--priority=prefer", c.image())
}

func convert(c *cell) {
	c.blank()
	c.cryptsetup("luksFormat", "--type=luks1", "--pbkdf-force-iterations=1000", c.image())
	c.cryptsetup("convert", "--type=luks2", c.image())
}

// keepFlags has activation flags written into the header.
func keepFlags(c *cell) {
	c.format()
	const name = "luksmediad-interop"
	c.cryptsetup("open", "--persistent", "--allow-discards", "--perf-no_read_workqueue", "--perf-no_write_workqueue",
		"--perf-same_cpu_crypt", c.image(), name)
	if mapping, err := unlock.FindMapping(name); err != nil || mapping == nil {
		c.Fatalf("cryptsetup opened nothing: %v", err)
	}
	c.tree.must(c.T, "/usr/sbin/cryptsetup", "close", name)
}

// offline is for files, of which cryptsetup cannot tell whether they are open.
const offline = "--force-offline-reencrypt"

func reencrypt(c *cell) {
	c.format()
	c.cryptsetup(append([]string{"reencrypt", offline, c.image()}, quick...)...)
}

// beginReencryption makes what luksmediad refuses: two segments, and a keyslot for the state of the work.
func beginReencryption(c *cell) {
	c.format()
	c.cryptsetup(append([]string{"reencrypt", offline, "--init-only", c.image()}, quick...)...)
}

// enrolAll has a keyslot of each kind that systemd-cryptenroll makes on this machine.
func enrolAll(c *cell) {
	c.startTPM()
	c.format()
	device := "--tpm2-device=" + c.tpm.TCTI()
	for _, args := range [][]string{
		{device, "--tpm2-pcrs=7"},
		append(c.tree.withPIN(), device, "--tpm2-pcrs=0+7"),
		{"--recovery-key"},
	} {
		c.enrol(args...)
		c.reboot()
	}
}

func (c *cell) keepHeader(name string) {
	c.Helper()
	header := c.header()
	content, err := os.ReadFile(c.image())
	if err != nil {
		c.Fatal(err)
	}
	var packed bytes.Buffer
	w, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	w.Write(content[:2*header.Size])
	w.Close()
	fmt.Printf("corpus\theader\t%s\t%s\n", name, base64.StdEncoding.EncodeToString(packed.Bytes()))
}
