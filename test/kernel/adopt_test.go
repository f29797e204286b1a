//go:build kernel

package kernel

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"luksmediad/test/swtpm"
)

// faults 65 and 66: however the daemon ends, whoever writes notices nothing, and the next daemon needs no key.
func TestAdopt(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			tpm := swtpm.Start(t)
			s := newSite(t, withTPM(tpm))
			s.create()
			first := s.serve()
			writer := s.startWriter()
			mounted := *mountAt(t, s.store)
			first.end(signal)
			s.requireOpen()

			s.remove(s.keyFile)
			tpm.PowerCut()
			for range 3 {
				second := s.serve()
				if !second.service.listenedWhenReady() {
					t.Error("READY=1 came before anybody could ask")
				}
				requireHealthy(t)
				if now := mountAt(t, s.store); now.ID != mounted.ID {
					t.Errorf("mount %d became %d", mounted.ID, now.ID)
				}
				second.end(signal)
			}
			s.requireOpen()
			writer.stop()
		})
	}
}

func TestDaemonEndsInOrder(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	d.end(syscall.SIGTERM)
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if !d.said("STOPPING=1") {
		t.Error("no STOPPING=1")
	}
	if !d.said("STATUS=") {
		t.Error("no STATUS=")
	}
}

// Most pages of the program are needed once, to start.
func TestDaemonGivesBackItsStart(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	program, err := os.Stat(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	process, err := procfs.NewProc(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "most of the program unmapped", func() bool {
		status, err := process.NewStatus()
		return err == nil && status.RssFile < uint64(program.Size())/2
	})
	requireHealthy(t)
}

// Somebody opened the volume with plain cryptsetup: the daemon takes it over.
func TestAdoptMappingOpenedByHand(t *testing.T) {
	s := newCreated(t)
	loop := must(t, "losetup", "--sector-size", "4096", "--direct-io=on", "--find", "--show", s.container)
	must(t, "cryptsetup", "open", "--key-file", s.keyFile, loop, s.mapping())
	must(t, "losetup", "--detach", loop) // when its last user goes
	s.remove(s.keyFile)
	s.serve()
	s.requireOpen()
	s.succeed("lock", "--yes")
	s.requireClosed()
}

// fault 57: a mapping of our name that is not ours is neither used nor removed.
func TestForeignMappingIsRefused(t *testing.T) {
	s := newCreated(t)
	must(t, "dmsetup", "create", s.mapping(), "--table", "0 131072 zero")
	t.Cleanup(func() { must(t, "dmsetup", "remove", s.mapping()) })
	s.start()
	s.awaitPhase("waiting")
	if table := must(t, "dmsetup", "table", s.mapping()); table != "0 131072 zero" {
		t.Errorf("the foreign mapping became %q", table)
	}
	if m := mountAt(t, s.store); m != nil {
		t.Errorf("%s is mounted at %s", m.Source, s.store)
	}
}

// cryptsetup opens the file once more without a word: health says so, and later who is in the way of opening.
func TestContainerOpenedTwice(t *testing.T) {
	s := newCreated(t)
	s.serve()
	rescue := func() { must(t, "cryptsetup", "open", "--key-file", s.keyFile, s.container, "rescue") }
	look := func() condition {
		if code, answer := control(t, "/v1/probes/header/run", ""); code != http.StatusOK {
			t.Fatalf("%d: %s", code, answer)
		}
		return s.condition("header")
	}
	rescue()
	if header := look(); header.Status != "failed" || header.Reason != "container_shared" || !strings.Contains(header.Text, "mapping rescue") ||
		!strings.Contains(header.Next, "losetup --list --associated "+s.container) {
		t.Errorf("%+v", header)
	}
	must(t, "cryptsetup", "close", "rescue")
	if header := look(); header.Status != "ok" {
		t.Errorf("%+v", header)
	}
	s.succeed("lock", "--yes")
	rescue()
	s.refuses("container_shared", 11, "unlock")
	must(t, "cryptsetup", "close", "rescue")
	s.succeed("unlock")
}

// writer appends to a file in the store, with a sync after every line, until stopped.
type writer struct {
	t     *testing.T
	halt  atomic.Bool
	ended chan error
}

func (s *site) startWriter() *writer {
	w := &writer{t: s.t, ended: make(chan error, 1)}
	path := filepath.Join(s.store, "upload")
	go func() { w.ended <- w.write(path) }()
	s.t.Cleanup(func() { w.halt.Store(true) })
	return w
}

func (w *writer) write(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for i := 0; !w.halt.Load(); i++ {
		if _, err := fmt.Fprintln(file, i); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond) // or it would do all the work of this machine
	}
	return nil
}

// stop wants that no write has failed.
func (w *writer) stop() {
	w.t.Helper()
	w.halt.Store(true)
	if err := <-w.ended; err != nil {
		w.t.Errorf("a writer in the store met: %v", err)
	}
}

// The page has this procedure for another place of the container, another name and another path: the record makes way, and all is adopted anew.
func TestAnotherContainerNameAndPath(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	s.write(filepath.Join(s.store, "kept"), "content")
	s.succeed("lock", "--yes")
	d.end(syscall.SIGTERM)
	old := *s
	s.container, s.store, s.volume = filepath.Join(s.dir, "moved.luks"), filepath.Join(s.dir, "other_store"), s.volume+"-anew"
	must(t, "cp", "--sparse=never", old.container, s.container)
	s.configure()
	s.refuses("not_set_up", 10, "key", "list")
	record := "/var/lib/luksmediad/volume-" + old.volume + ".json"
	must(t, "mv", record, s.dir)
	s.succeed("adopt", "--yes")
	s.serve()
	s.requireOpen()
	if content, err := os.ReadFile(filepath.Join(s.store, "kept")); err != nil || string(content) != "content" {
		t.Errorf("%q, %v", content, err)
	}
	for _, path := range []string{old.store, old.root()} {
		must(t, "sh", "-c", "chattr -i "+path+" && rmdir "+path)
	}
	must(t, "sh", "-c", "rm /run/luksmediad/"+old.volume+".*") // the next volume of that name would stay locked
}
