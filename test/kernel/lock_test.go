//go:build kernel

package kernel

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLock(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	s.succeed("lock", "--yes")
	s.requireClosed()
	s.requireGuarded()
	if phase := s.status().Phase; phase != "locked" {
		t.Errorf("phase %s", phase)
	}
	if code, body := get(t, "/healthz"); code != http.StatusServiceUnavailable {
		t.Errorf("/healthz: %d\n%s", code, body)
	}
	s.succeed("lock", "--yes") // once more is harmless
	s.refuses("not_mounted", 1, "migrate", "purge", "--confirm", "media")
	s.requireClosed()
	select {
	case <-d.ended:
		t.Fatal("the daemon ended")
	default:
	}
	s.succeed("unlock")
	s.requireOpen()
	requireHealthy(t)
}

// What a person has locked stays so when the daemon starts again, also where none ran meanwhile.
func TestLockOutlivesTheDaemon(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	s.succeed("lock", "--yes")
	d.end(unix.SIGTERM)
	d = s.start()
	s.awaitPhase("locked")
	s.refuses("gate_closed", 14, "gate", "wait", "--timeout", "1s")
	s.requireClosed()
	s.succeed("unlock")
	s.requireOpen()
	d.end(unix.SIGTERM)

	s.succeed("lock", "--yes")
	d = s.start()
	s.awaitPhase("locked")
	d.end(unix.SIGTERM)
	s.succeed("unlock")
	s.serve()
	s.requireOpen()
}

// What takes the place of a volume that a person has locked is opened by the next daemon, as the pages say.
func TestAnewAfterLock(t *testing.T) {
	for name, anew := range map[string]func(*site){
		"adopted": func(s *site) { s.succeed("adopt", "--yes") },
		"created": func(s *site) {
			must(t, "sh", "-c", "chattr -i "+s.store+" "+s.root()+" && rmdir "+s.store)
			must(t, "mv", s.container, s.container+".old")
			s.create()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newCreated(t)
			d := s.serve()
			s.succeed("lock", "--yes")
			d.end(unix.SIGTERM)
			must(t, "mv", "/var/lib/luksmediad/volume-"+s.volume+".json", s.dir)
			anew(s)
			s.serve()
			s.requireOpen()
		})
	}
}

// What is in use stays mounted, all of it, and is said to be in use.
func TestLockRefusesWhileInUse(t *testing.T) {
	s := newCreated(t)
	s.serve()
	file, err := os.Create(filepath.Join(s.store, "upload"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s.refuses("in_use", 11, "lock", "--yes")
	s.awaitPhase("serving")
	s.requireOpen()
	requireHealthy(t)
	if _, err := file.WriteString("still here"); err != nil {
		t.Error(err)
	}
}

// Without a daemon the commands do the same work themselves.
func TestUnlockAndLockWithoutDaemon(t *testing.T) {
	s := newCreated(t)
	s.succeed("unlock")
	s.requireOpen()
	s.succeed("lock", "--yes")
	s.requireClosed()
	s.requireGuarded()
}
