//go:build boot

package boot

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// checkUnits: the shipped units are right in themselves and among those of a real system.
func (m *Machine) checkUnits() {
	if out, err := m.Try("systemd-analyze verify luksmediad.service luksmediad-gate.service docker.service 2>&1"); err != nil || out != "" {
		m.t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	security, err := m.Try("systemd-analyze security --no-pager --threshold=46 luksmediad.service")
	if err != nil {
		m.t.Errorf("systemd-analyze security: %v\n%s", err, security)
	}
	m.t.Log(strings.TrimSpace(security[strings.LastIndex(security, "Overall"):]))
	if cycles := m.managerJournal(0, "ordering cycle"); cycles != "" {
		m.t.Errorf("units wait for each other:\n%s", cycles)
	}
	// A mount namespace of its own would hide the mounts from all others (fault 77).
	if daemon, host := m.mountNamespace(m.property("luksmediad.service", "MainPID")), m.mountNamespace("1"); daemon != host {
		m.t.Errorf("the daemon is in mount namespace %s, the machine in %s", daemon, host)
	}
	m.checkJournald()
}

// checkJournald: journald files what the daemon reports under the units that it is about, too, and journalctl -x explains it by the catalog.
func (m *Machine) checkJournald() {
	m.t.Helper()
	for selected, wanted := range map[string][]string{
		"--unit 'systemd-cryptsetup@*'": {"volume unlocked ", "tpm2"},
		"--unit docker.service":         {"gate opened"},
		`--catalog --unit 'systemd-cryptsetup@luksmediad\x2dsynapse\x2dmedia.service'`: {
			"Subject: Volume unlocked", "Defined-By: luksmediad", "The container is open as /dev/mapper/luksmediad-synapse-media."},
	} {
		journal := m.Run("journalctl --boot " + selected)
		for _, want := range wanted {
			if !strings.Contains(journal, want) {
				m.t.Errorf("journalctl %s does not show %q:\n%s", selected, want, journal)
			}
		}
	}
}

// checkRestart: a daemon that is restarted or killed leaves mounts and Docker as they are, and the next one adopts them
// (faults 65 and 66); the gate stays open while Docker is restarted (fault 67).
func (m *Machine) checkRestart(id string) {
	before := m.untouched()
	m.Run("systemctl restart luksmediad.service")
	m.checkUntouched("systemctl restart luksmediad", before)

	killed := m.property("luksmediad.service", "MainPID")
	m.Run("systemctl kill --signal=SIGKILL luksmediad.service")
	m.Eventually(time.Minute, "the daemon is back", func() error {
		state, pid := m.property("luksmediad.service", "ActiveState"), m.property("luksmediad.service", "MainPID")
		if state != "active" || pid == killed {
			return fmt.Errorf("%s, process %s", state, pid)
		}
		return nil
	})
	m.checkUntouched("SIGKILL", before)
	if journal := m.cryptsetupJournal(0); strings.Count(journal, "adopted") != 2 {
		m.t.Errorf("journalctl -u 'systemd-cryptsetup@*' does not show two adoptions:\n%s", journal)
	}
	m.checkReload(before)

	m.Run("systemctl stop docker.service docker.socket")
	if state := m.property("luksmediad-gate.service", "ActiveState"); state != "active" {
		m.t.Errorf("the gate is %s after a stop of Docker", state)
	}
	m.Run("systemctl start docker.service")
	m.WaitForSynapse()
	m.Thumbnail(id)
	m.checkHealthy("key_same_disk")
}

// checkReload: a wrong configuration fails systemctl reload and is told, a right one takes effect in the same process (fault 75).
func (m *Machine) checkReload(before string) {
	const file = "/etc/luksmediad/config.yaml"
	pid := m.property("luksmediad.service", "MainPID")
	m.Run("cp --archive " + file + " /root/config.yaml; echo 'nonsense: 1' >>" + file)
	if out, err := m.Try("systemctl reload luksmediad.service"); err == nil {
		m.t.Errorf("systemctl reload takes a wrong configuration:\n%s", out)
	}
	m.Run(curl + "'http://127.0.0.1:10165/healthz?verbose' | grep --fixed-strings '[!]configuration degraded: config: '")
	m.Run(curl + "http://127.0.0.1:10165/metrics | grep '^luksmediad_config_reload_success 0$'")
	m.checkUntouched("a refused reload", before)

	m.Run("cp --archive /root/config.yaml " + file)
	m.Run("systemctl reload luksmediad.service")
	if state, now := m.property("luksmediad.service", "ActiveState"), m.property("luksmediad.service", "MainPID"); state != "active" || now != pid {
		m.t.Errorf("after a reload: %s, process %s instead of %s", state, now, pid)
	}
	m.Run("journalctl --boot --unit luksmediad.service | grep 'configuration reloaded'")
	m.checkUntouched("systemctl reload luksmediad", before)
}

// untouched is what a restart of the daemon must not change: the mounts, Docker's process, Synapse's.
func (m *Machine) untouched() string {
	m.t.Helper()
	return m.Run("findmnt --noheadings --output ID,TARGET,SOURCE --types ext4; systemctl show --property MainPID docker.service; " +
		"systemctl show --property ActiveEnterTimestampMonotonic luksmediad-gate.service; docker inspect --format '{{.State.Pid}}' synapse")
}

func (m *Machine) checkUntouched(what, before string) {
	m.t.Helper()
	if after := m.untouched(); after != before {
		m.t.Errorf("%s: before\n%safter\n%s", what, before, after)
	}
}

// checkOrder: Docker began to start only after the gate had opened.
func (m *Machine) checkOrder() {
	m.t.Helper()
	gate, err1 := strconv.ParseInt(m.property("luksmediad-gate.service", "ActiveEnterTimestampMonotonic"), 10, 64)
	docker, err2 := strconv.ParseInt(m.property("docker.service", "InactiveExitTimestampMonotonic"), 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		m.t.Fatal(err)
	}
	if gate == 0 || docker < gate {
		m.t.Errorf("docker.service began to start at %d µs, the gate opened at %d µs", docker, gate)
	}
}

func (m *Machine) property(unit, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.Run("systemctl show --value --property " + name + " " + unit))
}

func (m *Machine) mountNamespace(pid string) string {
	m.t.Helper()
	return strings.TrimSpace(m.Run("readlink /proc/" + pid + "/ns/mnt"))
}

// managerJournal is what systemd itself said in this boot (0) or an earlier one (-1) about what the pattern matches.
func (m *Machine) managerJournal(boot int, pattern string) string {
	m.t.Helper()
	return m.Run(fmt.Sprintf("journalctl --boot=%d --output cat _PID=1 | grep --extended-regexp %s || true", boot, quote(pattern)))
}
