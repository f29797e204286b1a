//go:build boot

package boot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

const daemonURL = "http://127.0.0.1:10165"

// TestReboot is the main job on a real machine: a power cut, and everything is back without a hand on it; another TPM
// and no key file, and nothing starts, nothing can be written, until somebody types the recovery key.
func TestReboot(t *testing.T) {
	m := NewMachine(t)
	tree := m.Build()
	t.Parallel()
	m.Boot()
	m.Install(tree)
	key := m.SetUp()
	picture := newPicture(t)
	id := m.Upload(picture)
	thumbnail := m.Thumbnail(id)
	// The control: the search must find what does lie on the disk in clear text.
	control := newPicture(t)
	m.Pipe(bytes.NewReader(control), "cat >/root/control.png && sync")
	m.Cut()

	m.Boot()
	m.WaitForSynapse()
	at := m.locate(id)
	t.Run("hands off", func(t *testing.T) { m.in(t).checkHandsOff(id, picture) })
	t.Run("units", func(t *testing.T) { m.in(t).checkUnits() })
	t.Run("restart", func(t *testing.T) { m.in(t).checkRestart(id) })
	t.Run("failures", func(t *testing.T) { m.in(t).checkFailures(id) })
	m.Run("rm " + keyFile)
	m.GiveUpSoon()
	m.Shutdown()
	t.Run("raw disk", func(t *testing.T) { m.in(t).checkRawDisk(at, picture, thumbnail, control) })

	m.ReplaceTPM()
	m.Boot()
	t.Run("another TPM", func(t *testing.T) { m.in(t).checkShut() })
	m.Unlock(key)
	t.Run("recovery key", func(t *testing.T) { m.in(t).checkRecovered(id, picture) })
	t.Run("no key in the journal", func(t *testing.T) { m.in(t).checkJournal(key) })
	m.Shutdown()
}

// in has the machine report to a subtest.
func (m *Machine) in(t *testing.T) *Machine {
	sub := *m
	sub.t = t
	return &sub
}

// checkHandsOff: the volume's journal is dirty, no key was typed, and yet all is back (fault 59).
func (m *Machine) checkHandsOff(id string, picture []byte) {
	m.Thumbnail(id)
	if !bytes.Equal(m.Download(id), picture) {
		m.t.Error("the picture differs after the power cut")
	}
	m.checkEncrypted()
	m.checkOrder()
	m.checkHealthy("key_same_disk")
	m.checkMetrics()
	if journal := m.cryptsetupJournal(0); !strings.Contains(journal, "tpm2") {
		m.t.Errorf("journalctl -u 'systemd-cryptsetup@*' shows no unlock by tpm2:\n%s", journal)
	}
}

// checkShut is a disk in another machine: the sealed key is no use there, the key file is missing (faults 43 and 46).
func (m *Machine) checkShut() {
	m.Eventually(2*time.Minute, "/healthz says what to type", func() error {
		text, code := m.healthz()
		if code != "503" || !strings.Contains(text, "luksmediad unlock") {
			return fmt.Errorf("status %s: %s", code, text)
		}
		return nil
	})
	text, _ := m.healthz()
	m.t.Logf("/healthz?verbose:\n%s", text)
	m.checkGuard()
	m.checkClosed()
	m.checkGivenUp()
	if journal := m.Run("journalctl --boot --unit luksmediad.service --output cat"); !strings.Contains(journal, "luksmediad unlock") {
		m.t.Errorf("the journal does not say what to type:\n%s", journal)
	}
	if journal := m.cryptsetupJournal(0); !strings.Contains(journal, "tpm2") || !strings.Contains(journal, keyFile) {
		m.t.Errorf("journalctl -u 'systemd-cryptsetup@*' does not say why:\n%s", journal)
	}
}

// checkGivenUp: Docker does not start, and what waited for the gate holds up the boot no longer; the daemon alone goes on.
func (m *Machine) checkGivenUp() {
	m.t.Helper()
	m.Eventually(2*time.Minute, "the gate's job has timed out", func() error {
		if jobs := m.Run("systemctl list-jobs --no-legend"); strings.Contains(jobs, "docker") || strings.Contains(jobs, "gate") {
			return errors.New(jobs)
		}
		return nil
	})
	for unit, want := range map[string]string{
		"docker.service": "inactive", "luksmediad-gate.service": "inactive", "luksmediad.service": "activating", "multi-user.target": "active",
	} {
		if state := m.property(unit, "ActiveState"); state != want {
			m.t.Errorf("%s is %s, not %s", unit, state, want)
		}
	}
	// While the daemon tries again, its status names the step.
	m.Eventually(time.Minute, "systemctl status says what to type", func() error {
		if status := m.property("luksmediad.service", "StatusText"); !strings.Contains(status, "luksmediad unlock") {
			return errors.New(status)
		}
		return nil
	})
}

// checkClosed: the shutdown before this boot unmounted and closed the volume once Docker had stopped (fault 69).
func (m *Machine) checkClosed() {
	m.t.Helper()
	if journal := m.cryptsetupJournal(-1); !strings.Contains(journal, "closed") {
		m.t.Errorf("the shutdown did not close the volume:\n%s", journal)
	}
	if late := m.managerJournal(-1, "timed out|Failed unmounting"); late != "" {
		m.t.Errorf("something held up the shutdown:\n%s", late)
	}
}

// checkRecovered: the recovery key alone brings everything back, with nothing else to start by hand.
func (m *Machine) checkRecovered(id string, picture []byte) {
	m.Eventually(2*time.Minute, "docker starts after the unlock", func() error {
		_, err := m.Try("systemctl is-active docker.service luksmediad-gate.service")
		return err
	})
	m.WaitForSynapse()
	m.Thumbnail(id)
	if !bytes.Equal(m.Download(id), picture) {
		m.t.Error("the picture differs after the recovery")
	}
	m.checkEncrypted()
	m.checkOrder()
	m.checkHealthy("protection_unknown", "keys") // the key file is gone, its keyslot is not, and the TPM is another one
}

// checkJournal: whatever has happened in all the boots, no key was written down. The search for something that was shows that the
// journal is there to be searched.
func (m *Machine) checkJournal(recovery string) {
	m.t.Helper()
	journal := m.Run("journalctl --output=export --no-pager _SYSTEMD_UNIT=luksmediad.service + SYSLOG_IDENTIFIER=luksmediad")
	for _, secret := range []string{recovery, synapseToken} {
		if strings.Contains(journal, secret) {
			m.t.Errorf("%d characters that begin with %.4s… are in the journal", len(secret), secret)
		}
	}
	if !strings.Contains(journal, "LUKSMEDIAD_EVENT=unlocked") {
		m.t.Errorf("the journal that was searched has no event of an unlock:\n%s", journal)
	}
}

// checkGuard: even root cannot write where the volume should be (faults 67 and 68).
func (m *Machine) checkGuard() {
	m.t.Helper()
	if out, err := m.Try("touch " + mediaStore + "/plaintext"); err == nil {
		m.t.Errorf("root can write to the unmounted store: %s", out)
	}
	if state := strings.TrimSpace(m.Run("stat --format '%u:%g %a' " + mediaStore)); state != "0:0 0" {
		m.t.Errorf("the bare mountpoint is %s, not 0:0 0", state)
	}
	if flags, _, _ := strings.Cut(m.Run("lsattr -d "+mediaStore), " "); !strings.Contains(flags, "i") {
		m.t.Errorf("the bare mountpoint is not immutable: %s", flags)
	}
}

// checkEncrypted: whatever is mounted at the store lies on a dm-crypt mapping, and that on a LUKS container.
func (m *Machine) checkEncrypted() {
	m.t.Helper()
	var listed struct {
		BlockDevices []blockDevice `json:"blockdevices"`
	}
	if err := json.Unmarshal([]byte(m.Run("lsblk --json --output NAME,TYPE,FSTYPE,MOUNTPOINTS")), &listed); err != nil {
		m.t.Fatalf("lsblk: %v", err)
	}
	if !slices.ContainsFunc(listed.BlockDevices, blockDevice.holdsStoreEncrypted) {
		m.t.Error("lsblk shows no crypto_LUKS below the store")
	}
	m.t.Logf("lsblk -f:\n%s", m.Run("lsblk -f"))
}

type blockDevice struct {
	Name, Type, FSType string
	MountPoints        []string
	Children           []blockDevice
}

func (d blockDevice) holdsStoreEncrypted() bool {
	return d.FSType == "crypto_LUKS" && slices.ContainsFunc(d.Children, func(child blockDevice) bool {
		return child.Type == "crypt" && slices.Contains(child.MountPoints, mediaStore)
	})
}

// checkHealthy gives the probes that need Synapse one interval's time: until then they are degraded, which is 200 as well. The one warning
// that stays is about where the key file lies; besides are the conditions in which something else is wrong on purpose.
func (m *Machine) checkHealthy(keys string, besides ...string) {
	m.t.Helper()
	m.Eventually(time.Minute, "/healthz is 200 without another warning", func() error {
		text, code := m.healthz(append(besides, "protection")...)
		if code != "200" || strings.Contains(text, "warnings") {
			return fmt.Errorf("status %s: %s", code, text)
		}
		if text, _ = m.healthz(); !strings.Contains(text, "[!]protection degraded: "+keys+": ") {
			return fmt.Errorf("not %s: %s", keys, text)
		}
		return nil
	})
	var status map[string]any
	if err := json.Unmarshal([]byte(m.Run("luksmediad status --json || [ $? -eq 3 ]")), &status); err != nil {
		m.t.Errorf("luksmediad status --json: %v", err)
	}
}

// healthz returns the text and the HTTP status code of /healthz?verbose, without the conditions that are named.
func (m *Machine) healthz(exclude ...string) (text, code string) {
	m.t.Helper()
	query := "verbose"
	for _, name := range exclude {
		query += "&exclude=" + name
	}
	out, err := m.Try("curl --silent --max-time 10 --write-out '\\n%{http_code}' '" + daemonURL + "/healthz?" + query + "'")
	if err != nil {
		return err.Error(), ""
	}
	cut := strings.LastIndex(out, "\n")
	return out[:cut], out[cut+1:]
}

func (m *Machine) checkMetrics() {
	m.t.Helper()
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = strings.NewReader(m.Run(curl + daemonURL + "/metrics"))
	if out, err := check.CombinedOutput(); err != nil {
		m.t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// cryptsetupJournal is what an administrator sees of this boot (0) or an earlier one (-1).
func (m *Machine) cryptsetupJournal(boot int) string {
	m.t.Helper()
	return m.Run(fmt.Sprintf("journalctl --boot=%d --output cat --unit 'systemd-cryptsetup@*'", boot))
}
