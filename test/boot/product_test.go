//go:build boot

package boot

import (
	"bytes"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

const (
	container = "/var/lib/luksmediad/synapse-media.luks"
	keyFile   = "/root/.luks-media.key"
)

// probeInterval is that of configuration.
const probeInterval = 5 * time.Second

const configuration = `volume:
  name: synapse-media
  container: ` + container + `
  size: 512MiB
stores:
  - name: media
    path: ` + mediaStore + `
    owner: 991:991
    service: {docker: synapse}
unlock:
  - tpm2: {device: auto}
  - keyfile: {path: ` + keyFile + `}
probes:
  interval: 5s
  synapse: {url: "` + synapseURL + `", token_file: /etc/luksmediad/synapse.token}
`

// modhex is the form of a recovery key, as systemd's recovery_key.c writes it.
var modhex = regexp.MustCompile(`\b[cbdefghijklnrtuv]{8}(-[cbdefghijklnrtuv]{8}){7}\b`)

// Build makes what a package would hold and returns the folder it lies in.
func (m *Machine) Build() string {
	m.t.Helper()
	tree := m.t.TempDir()
	m.host("make", "-C", "../..", "install", "DESTDIR="+tree)
	return tree
}

// Install puts what Build made into the guest.
func (m *Machine) Install(tree string) {
	m.t.Helper()
	packed, err := exec.Command("tar", "--directory", tree, "--owner=0", "--group=0", "--no-same-owner", "--create", ".").Output()
	if err != nil {
		m.t.Fatalf("tar: %v", err)
	}
	m.Pipe(bytes.NewReader(packed), "tar --directory / --extract --no-overwrite-dir --file -")
	m.Run("systemctl daemon-reload && systemd-sysusers luksmediad.conf && systemd-tmpfiles --create luksmediad.conf && journalctl --update-catalog")
}

// SetUp goes the documented way from an installed luksmediad to a Synapse that stores its media encrypted, and returns
// the recovery key.
func (m *Machine) SetUp() string {
	m.t.Helper()
	m.write("/etc/luksmediad/config.yaml", configuration)
	m.write("/etc/luksmediad/synapse.token", synapseToken+"\n")
	m.Run("luksmediad config check")
	m.Run("systemctl stop docker.service docker.socket")
	printed := m.Run("luksmediad create --yes") // the key file lies on the only disk
	key := modhex.FindString(printed)
	if key == "" {
		m.t.Fatal("create printed no recovery key")
	}
	m.Run("systemctl enable --now luksmediad.service")
	m.Run("systemctl start docker.service && docker start synapse")
	m.WaitForSynapse()
	return key
}

// Unlock types the recovery key on the guest.
func (m *Machine) Unlock(key string) {
	m.t.Helper()
	m.Pipe(strings.NewReader(key+"\n"), "luksmediad unlock --passphrase-file -")
}

// GiveUpSoon has what waits for the gate give up before the test does; the shipped unit gives a person more time.
func (m *Machine) GiveUpSoon() {
	m.t.Helper()
	m.write("/etc/systemd/system/luksmediad-gate.service.d/soon.conf", "[Unit]\nJobTimeoutSec=10s\n")
}

// write makes a file that only root may read.
func (m *Machine) write(path, content string) {
	m.t.Helper()
	m.Pipe(strings.NewReader(content), "umask 077 && mkdir -p $(dirname "+path+") && cat >"+path)
}
