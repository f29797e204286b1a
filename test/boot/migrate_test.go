//go:build boot

package boot

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMigrate moves the media of a Synapse that has run for a while, and to which a client uploads all the time. A power cut in the middle of the
// copy leaves it on the old files, one right after the exchange on either, one on the way back too, and each time the same command comes to
// its end. The move costs it seconds, and the way back carries back what has come since. A Synapse that does not come up in time goes back by
// itself, and the volume grows in the middle of an upload. In the end the store moves to a disk, beside a second one.
//
// faults 14, 22, 24, 25, 26, 27 and 28
func TestMigrate(t *testing.T) {
	m := NewMachine(t)
	disk := m.AddDisk("media", 400<<20)
	tree := m.Build()
	t.Parallel() // an emulator keeps little more than one processor busy
	m.Boot()
	m.Run(composeSynapse)
	m.WaitForSynapse()
	uploads := uploads{m: m}
	uploads.add(3)
	m.startClient()
	m.Install(tree)
	m.write("/etc/luksmediad/config.yaml", configuration)
	m.write("/etc/luksmediad/synapse.token", synapseToken+"\n")
	if said := m.Run("luksmediad create --yes"); !strings.Contains(said, "luksmediad migrate media") {
		t.Errorf("create says %s", said)
	}
	m.Run("systemctl enable --now luksmediad.service")
	m.checkStore("plaintext")
	m.checkUnwell(&uploads)

	// What makes the copy last long enough to be cut.
	m.Run("cd " + mediaStore + " && head --bytes=100M /dev/urandom | split --bytes=500K - local_content/filler- && chown -R 991:991 . && sync")
	m.beginMove()
	m.Eventually(2*time.Minute, "the copy is under way", func() error {
		_, err := m.Try(`grep --quiet '"step":"copy".*"bytes":[1-9]' /run/luksmediad/synapse-media.migrate.json`)
		return err
	})
	m.Cut()
	m.comeBack()
	m.checkStore("moving")
	uploads.check("after a power cut in the copy")
	// Most of them have done their work; the copy goes on with what is left, and takes back what is gone.
	m.Run("rm " + mediaStore + "/local_content/filler-[b-z]*")
	uploads.add(1)

	t.Logf("dry run: %s", m.Run("luksmediad migrate --dry-run"))
	m.Run("sync") // Synapse itself does not
	m.cutAt("luksmediad migrate --yes", "bind", "start service", "trial")
	m.comeBack()
	uploads.check("after a power cut right after the exchange")
	t.Logf("migrate: %s", m.long("luksmediad migrate --yes"))
	m.checkStore("encrypted")
	m.checkEncrypted()
	uploads.add(1)
	m.checkGrow()
	m.write("/etc/luksmediad/config.yaml", strings.Replace(configuration, "{docker: synapse}",
		"{compose: {file: "+composeFile+", service: synapse}}", 1))
	m.Run("systemctl reload luksmediad.service && sync")

	m.cutAt("luksmediad migrate rollback --yes", "carry back", "verify all", "unbind", "swap back")
	m.comeBack()
	uploads.check("after a power cut on the way back")
	said, err := m.ssh(10*time.Minute, nil, "luksmediad migrate rollback --yes") // or there is none any more
	t.Logf("rollback: %s (%v)", said, err)
	m.checkStore("plaintext")
	m.Run("docker inspect --format '{{.State.Status}}' synapse | grep running")
	m.startOver(disk)
	uploads.check("went back")
	m.checkTwoStores(&uploads)
	if count := m.checkClient("purged"); count < 10 {
		t.Errorf("the client has uploaded only %d times", count)
	}
	t.Logf("status: %s", m.Run("luksmediad status || true"))
	if left := m.Run("ls -A " + synapseData + " /srv"); strings.Contains(left, "luksmediad") {
		t.Errorf("left: %s", left)
	}
	m.Shutdown()
}

const composeFile = "/home/ubuntu/app/compose.yaml"

// composeSynapse makes the container anew as Compose would, which is not there: by its labels it is found.
const composeSynapse = `docker rm synapse && docker create --name synapse --restart unless-stopped --network host --user 991:991 --tmpfs /tmp \
	--label com.docker.compose.project=app --label com.docker.compose.project.config_files=` + composeFile + ` \
	--label com.docker.compose.service=synapse --label com.docker.compose.oneoff=False \
	--volume ` + synapseData + `:/data synapse python3 -m synapse.app.homeserver --config-path /data/homeserver.yaml && docker start synapse`

// checkUnwell moves the store of a Synapse that is not up in the volume within the deadline, which none is here: it is back on the old files.
func (m *Machine) checkUnwell(uploads *uploads) {
	m.t.Helper()
	said, err := m.ssh(5*time.Minute, nil, "luksmediad migrate --yes --deadline 5s 2>&1")
	if err == nil || !strings.Contains(said, "swap back") || !strings.Contains(said, "its service is not well") {
		m.t.Errorf("the move of a Synapse that is not well: %v\n%s", err, said)
	}
	m.t.Logf("not well: %s", said)
	m.checkStore("plaintext")
	m.WaitForSynapse()
	uploads.check("went back by itself")
}

// checkGrow makes the volume larger in the middle of an upload. All that lies above each other has grown then.
func (m *Machine) checkGrow() {
	m.t.Helper()
	const by, forInodes = 64 << 20, 10 << 20
	before := m.sizes()
	m.t.Logf("grow: %s", m.uploadAround("luksmediad grow --by 64MiB --quiet"))
	for what, size := range m.sizes() {
		if grown := size - before[what]; grown > by || grown < by-forInodes {
			m.t.Errorf("%s has grown by %d bytes, from %d", what, grown, before[what])
		}
	}
}

// sizes are those of what lies above each other, and what the daemon says of it, in bytes.
func (m *Machine) sizes() map[string]int64 {
	m.t.Helper()
	found := map[string]int64{}
	for what, command := range map[string]string{
		"container":   "stat --format %s " + container,
		"loop device": "blockdev --getsize64 $(losetup --noheadings --output NAME --associated " + container + ")",
		"mapping":     "blockdev --getsize64 /dev/mapper/luksmediad-synapse-media",
		"filesystem":  "df --block-size=1 --output=size " + mediaStore + " | tail --lines=1",
		"status":      curl + daemonURL + `/v1/status | sed 's/.*"container_bytes":\([0-9]*\).*/\1/'`,
	} {
		size, err := strconv.ParseInt(strings.TrimSpace(m.Run(command)), 10, 64)
		if err != nil {
			m.t.Fatalf("%s: %v", what, err)
		}
		found[what] = size
	}
	return found
}

// comeBack switches the machine on, hands off, and has the client go on.
func (m *Machine) comeBack() {
	m.t.Helper()
	m.Boot()
	m.WaitForSynapse()
	m.startClient()
}

// beginMove asks the daemon, which begins the move in a unit of its own.
func (m *Machine) beginMove() {
	m.t.Helper()
	said := m.Run(curl + `--unix-socket /run/luksmediad/control.sock --header 'Content-Type: application/json' --data '{"store":"media"}' http://localhost/v1/migrate`)
	if !strings.Contains(said, `"unit":"luksmediad-migrate.service"`) {
		m.t.Fatalf("the move has not begun: %s", said)
	}
	m.t.Logf("begun: %s", said)
}

// long runs what takes its time where nothing is accelerated.
func (m *Machine) long(command string) string {
	m.t.Helper()
	out, err := m.ssh(10*time.Minute, nil, command)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// checkStore wants status to say where the store is.
func (m *Machine) checkStore(state string) {
	m.t.Helper()
	if status := m.Run("luksmediad status --json || true"); !strings.Contains(status, fmt.Sprintf(`"state":%q`, state)) {
		m.t.Errorf("the store is not %s: %s", state, status)
	}
}

// uploads are pictures that users have uploaded, which have to be there whatever happens.
type uploads struct {
	m        *Machine
	ids      []string
	pictures [][]byte
}

func (u *uploads) add(count int) {
	u.m.t.Helper()
	for range count {
		picture := newPicture(u.m.t)
		u.ids = append(u.ids, u.m.Upload(picture))
		u.pictures = append(u.pictures, picture)
	}
}

func (u *uploads) check(when string) {
	u.m.t.Helper()
	for i, id := range u.ids {
		if !bytes.Equal(u.m.Download(id), u.pictures[i]) {
			u.m.t.Errorf("%s: upload %d differs", when, i)
		}
		u.m.Thumbnail(id)
	}
}
