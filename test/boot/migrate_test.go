//go:build boot

package boot

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestMigrate moves the media of a Synapse that has run for a while, and to which a client uploads all the time. A power cut in the middle of the
// copy leaves it on the old files, one right after the exchange on either, one on the way back too, and each time the same command comes to
// its end. The move costs it seconds, and the way back carries back what has come since.
//
// faults 14, 22, 24, 25, 27 and 28
func TestMigrate(t *testing.T) {
	m := NewMachine(t)
	tree := m.Build()
	t.Parallel() // an emulator keeps little more than one processor busy
	m.Boot()
	m.Run("docker start synapse")
	m.WaitForSynapse()
	uploads := uploads{m: m}
	uploads.add(3)
	m.startClient()
	// What makes the copy last long enough to be cut.
	m.Run("cd " + mediaStore + " && head --bytes=100M /dev/urandom | split --bytes=500K - local_content/filler- && chown -R 991:991 . && sync")
	m.Install(tree)
	m.write("/etc/luksmediad/config.yaml", configuration)
	m.write("/etc/luksmediad/synapse.token", synapseToken+"\n")
	if said := m.Run("luksmediad create --yes"); !strings.Contains(said, "luksmediad migrate media") {
		t.Errorf("create says %s", said)
	}
	m.Run("systemctl enable --now luksmediad.service && sync") // the configuration, too
	m.checkStore("plaintext")

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
	m.Run("sync")

	m.cutAt("luksmediad migrate rollback --yes", "carry back", "verify all", "unbind", "swap back")
	m.comeBack()
	uploads.check("after a power cut on the way back")
	said, err := m.Try("luksmediad migrate rollback --yes") // or there is none any more
	t.Logf("rollback: %s (%v)", said, err)
	m.checkStore("plaintext")
	m.WaitForSynapse()
	uploads.check("went back")
	m.beginMove()
	m.Eventually(10*time.Minute, "the move has come to its end", func() error {
		said := m.Run(curl + daemonURL + "/v1/operations")
		if strings.Contains(said, `"failed"`) {
			t.Fatal(said)
		}
		if !strings.Contains(said, `"done"`) {
			return errors.New(said)
		}
		return nil
	})
	m.checkEncrypted()
	uploads.check("moved in again")
	t.Logf("purge: %s", m.long("luksmediad migrate purge --confirm synapse-media"))
	uploads.check("purged")
	if count := m.checkClient("purged"); count < 10 {
		t.Errorf("the client has uploaded only %d times", count)
	}
	t.Logf("status: %s", m.Run("luksmediad status || true"))
	if left := m.Run("ls -A " + synapseData); strings.Contains(left, "luksmediad") {
		t.Errorf("left: %s", left)
	}
	m.Shutdown()
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
