//go:build boot

package boot

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
)

const (
	databasePath = "/srv/database"
	synapseUnit  = "matrix-synapse.service"
	databaseUnit = "database.service"
)

// diskConfiguration is a volume on a disk of its own, with two stores that units of systemd use.
const diskConfiguration = `volume:
  name: synapse-media
  container: %s
  filesystem: xfs
stores:
  - name: media
    path: ` + mediaStore + `
    owner: 991:991
    service: {systemd: ` + synapseUnit + `}
  - name: database
    path: ` + databasePath + `
    owner: 1992:1992
    service: {systemd: ` + databaseUnit + `}
unlock:
  - tpm2: {device: auto}
probes:
  interval: 5s
  synapse: {url: "` + synapseURL + `", token_file: /etc/luksmediad/synapse.token}
`

// synapseService runs Synapse as Debian's package does, with what lies in the container's image.
const synapseService = `[Service]
User=991
Group=991
RootDirectory=/srv/synapse
MountAPIVFS=yes
BindPaths=` + synapseData + `:/data
TemporaryFileSystem=/tmp:mode=1777
ProtectSystem=strict
ReadWritePaths=/data
ExecStart=/usr/bin/python3 -m synapse.app.homeserver --config-path /data/homeserver.yaml
[Install]
WantedBy=multi-user.target
`

// databaseService stands for Postgres: it has a file open all the time, and says in it with each line which process it is.
const databaseService = `[Service]
User=database
ExecStart=/bin/bash -c 'exec >>log; while :; do echo $$$$; sleep 1; done'
WorkingDirectory=` + databasePath + `
[Install]
WantedBy=multi-user.target
`

// startOver goes over to a disk, and from Docker to units, with the store in clear text: as docs/operations.md has it in "Another disk, path or
// name", but that there is nothing to adopt. What was in the container runs on without one.
func (m *Machine) startOver(disk string) {
	m.t.Helper()
	m.installXFS()
	m.Run("luksmediad lock --yes")
	m.checkStopped("docker.service", "luksmediad-gate.service")
	m.Run("systemctl disable docker.service docker.socket && systemctl stop luksmediad.service")
	m.Run("mv /var/lib/luksmediad/volume-synapse-media.json /root/ && rm " + container)
	m.write("/etc/luksmediad/config.yaml", fmt.Sprintf(diskConfiguration, disk))
	m.Run(`layer=$(dirname /var/lib/docker/overlay2/*/diff/bin) && ln --symbolic $layer /srv/synapse
		groupadd --gid 991 synapse && useradd --uid 1992 database
		install -d -o database -g database ` + databasePath + ` && head --bytes=1M /dev/urandom >` + databasePath + `/table`)
	for unit, content := range map[string]string{synapseUnit: synapseService, databaseUnit: databaseService} {
		m.Pipe(strings.NewReader(content), "cat >/etc/systemd/system/"+unit)
		m.Run("install -D --mode=0644 /usr/lib/systemd/system/docker.service.d/luksmediad.conf /etc/systemd/system/" + unit + ".d/luksmediad.conf")
	}
	m.Run("systemctl daemon-reload && luksmediad create --yes --quiet && systemctl start luksmediad.service")
	m.Run("systemctl enable --now " + synapseUnit + " " + databaseUnit)
	m.WaitForSynapse()
}

// installXFS brings mkfs.xfs, which the image of the disk has not, with what it takes from others than libc6 and util-linux.
func (m *Machine) installXFS() {
	m.t.Helper()
	const program = "/usr/sbin/mkfs.xfs"
	linked, err := exec.Command("ldd", program).Output()
	if err != nil {
		m.t.Fatalf("ldd: %v", err)
	}
	files := regexp.MustCompile(`/\S+/lib(inih|urcu)\.so\S*`).FindAllString(string(linked), -1)
	packed, err := exec.Command("tar", append([]string{"--dereference", "--hard-dereference", "--owner=0", "--group=0", "--create", program}, files...)...).Output()
	if err != nil {
		m.t.Fatalf("tar: %v", err)
	}
	m.Pipe(bytes.NewReader(packed), "tar --directory / --extract --no-overwrite-dir --file - && ldconfig")
}

// checkTwoStores moves two stores one after the other, and each move stops the service of its own store alone. The second is begun in a terminal
// that is lost, and watched from another one.
func (m *Machine) checkTwoStores(uploads *uploads) {
	m.t.Helper()
	table := m.Run("sha256sum " + databasePath + "/table")
	synapse, database := m.property(synapseUnit, "MainPID"), m.property(databaseUnit, "MainPID")
	m.t.Logf("migrate database: %s", m.long("luksmediad migrate database --yes"))
	if m.property(synapseUnit, "MainPID") != synapse || m.property(databaseUnit, "MainPID") == database {
		m.t.Error("the move of the database has not stopped its service, and no other one")
	}
	m.Run("grep --line-regexp --max-count=1 " + database + " " + databasePath + "/log") // what it wrote before
	m.loseTerminal("luksmediad migrate media --yes", "media", "copy", "verify", "stop service")
	if said := m.long("luksmediad migrate --attach 2>&1"); !strings.Contains(said, "trial") || !strings.Contains(said, "come to its end") {
		m.t.Errorf("the move that has lost its terminal: %s", said)
	}
	m.Run(curl + daemonURL + `/v1/operations | grep '"action":"migrate".*"state":"done".*"store":"media"'`)
	if m.property(synapseUnit, "MainPID") == synapse {
		m.t.Error("Synapse was not started again")
	}
	m.checkOnDisk(table)
	uploads.check("moved to the disk")
	m.t.Logf("purge: %s%s", m.long("luksmediad migrate purge media --confirm synapse-media --quiet"),
		m.long("luksmediad migrate purge database --confirm synapse-media --quiet"))
	m.checkLock()
	m.checkOnDisk(table)
	uploads.check("locked and unlocked")
}

// checkOnDisk: both stores are on the one encrypted xfs on the disk, and the database has what it had, and writes there.
func (m *Machine) checkOnDisk(table string) {
	m.t.Helper()
	m.checkEncrypted()
	for _, path := range []string{mediaStore, databasePath} {
		m.Run("findmnt --noheadings --types xfs --mountpoint " + path + " --output SOURCE | grep '/stores/'")
	}
	m.Run("cryptsetup isLuks /dev/vdb && dmsetup deps --options devname luksmediad-synapse-media | grep --fixed-strings '(vdb)'")
	if now := m.Run("sha256sum " + databasePath + "/table"); now != table {
		m.t.Errorf("the database differs: %s", now)
	}
	pid := m.property(databaseUnit, "MainPID")
	m.Run("for i in $(seq 100); do grep --line-regexp --max-count=1 " + pid + " " + databasePath + "/log && exit; sleep 0.1; done; exit 1")
}

// checkLock closes the volume by hand: what uses the stores is stopped, and nothing can be written where they were. One word brings all of it back.
func (m *Machine) checkLock() {
	m.t.Helper()
	m.Run("luksmediad lock --yes")
	m.checkStopped(synapseUnit, databaseUnit, "luksmediad-gate.service")
	m.checkGuard()
	m.Run("[ ! -e /dev/mapper/luksmediad-synapse-media ]")
	m.Run("luksmediad unlock")
	m.WaitForSynapse()
}

// checkStopped wants Synapse down, and these units.
func (m *Machine) checkStopped(units ...string) {
	m.t.Helper()
	for _, unit := range units {
		if state := m.property(unit, "ActiveState"); state != "inactive" {
			m.t.Errorf("%s is %s after a lock", unit, state)
		}
	}
	if _, err := m.Try(": </dev/tcp/" + synapseHost + "/" + synapsePort); err == nil {
		m.t.Error("Synapse answers after a lock")
	}
}
