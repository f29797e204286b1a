//go:build kernel

package kernel

import "testing"

// What somebody unmounts by hand is mounted again within an interval of the probes, and by unlock at once.
func TestDaemonMendsMounts(t *testing.T) {
	s := newCreated(t)
	s.serve()
	must(t, "umount", s.store)
	eventually(t, "the store to be bound again", func() bool { return mountAt(t, s.store) != nil })
	s.requireOpen()
	must(t, "umount", s.store)
	s.succeed("unlock")
	s.requireOpen()
}

// A foreign mount over a store is said to be one, for as long as it is there.
func TestDaemonSeesCoveredStore(t *testing.T) {
	s := newCreated(t)
	s.serve()
	must(t, "mount", "-t", "tmpfs", "tmpfs", s.store)
	s.awaitPhase("waiting")
	if state := s.status().State; state != "open" {
		t.Errorf("the container is open; status says %s", state)
	}
	must(t, "umount", s.store)
	s.succeed("unlock")
	s.requireOpen()
	requireHealthy(t)
}

// A gate that starts again takes back what its stop has done, and not what a person has asked for.
func TestLockByGate(t *testing.T) {
	s := newCreated(t)
	s.serve()
	if closed := s.succeed("--json", "gate", "close").stdout; closed != `{"type":"result","exit_code":0,"text":"locked"}`+"\n" {
		t.Errorf("gate close: %s", closed)
	}
	s.requireClosed()
	s.succeed("gate", "wait", "--timeout", "30s")
	s.requireOpen()
	s.succeed("lock", "--yes")
	s.refuses("gate_closed", 14, "gate", "wait", "--timeout", "1s")
	s.requireClosed()
}
