//go:build kernel

package kernel

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"luksmediad/internal/api"
)

// keyFileCanary can be recognised wherever it turns up; so can a recovery key.
const keyFileCanary = "canary-of-the-key-file-0123456789abcdef"

// A key must turn up nowhere but in the key file: not in the arguments or the environment of any process while the volume is
// made, opened, opened by hand and locked, nor in what is logged, printed or answered, nor in the daemon's memory afterwards.
func TestSecretsStaySecret(t *testing.T) {
	s := newSite(t)
	s.write(s.keyFile, keyFileCanary)
	watch := watchProcesses()
	s.create() // prints the recovery key, as it should
	canaries := secrets{t, keyFileCanary, s.recovery}

	d := s.serve()
	s.requireOpenedBy("keyfile")
	passphraseFile := filepath.Join(s.dir, "passphrase")
	s.write(passphraseFile, s.recovery+"\n")
	said := []string{s.call("--json", "status").stdout, s.spoken("--json", "key", "test", "--passphrase-file", passphraseFile)}
	canaries.requireAbsent("the daemon's memory", memoryOf(t, d.cmd.Process.Pid))
	said = append(said, s.spoken("lock", "--yes"), s.spoken("unlock", "--passphrase-file", passphraseFile), s.spoken("lock", "--yes"))
	wrong := s.callWith(s.recovery+"-but-wrong\n", "--json", "unlock", "--passphrase-file", "-")
	if said = append(said, wrong.stdout+wrong.stderr); wrong.code != 12 {
		t.Errorf("unlock with a wrong passphrase: exit code %d", wrong.code)
	}

	canaries.requireAbsent("an argument or environment", watch.end())
	canaries.requireAbsent("an answer over HTTP", answers(t))
	canaries.requireAbsent("what commands print", []byte(strings.Join(said, "\n")))
	canaries.requireAbsent("the daemon's memory after all that", memoryOf(t, d.cmd.Process.Pid))
	log, err := os.ReadFile(d.log)
	if err != nil {
		t.Fatal(err)
	}
	canaries.requireAbsent("the log", log)
}

// spoken is all that a command prints.
func (s *site) spoken(args ...string) string {
	s.t.Helper()
	r := s.succeed(args...)
	return r.stdout + r.stderr
}

// secrets are what must turn up nowhere.
type secrets struct {
	t                 *testing.T
	keyFile, recovery string
}

// requireAbsent looks for the secrets as they are and in base64, which is how a TPM's key is spelt.
func (s secrets) requireAbsent(where string, seen []byte) {
	s.t.Helper()
	if len(seen) == 0 {
		s.t.Errorf("%s: nothing was seen", where)
	}
	for _, canary := range []string{s.keyFile, s.recovery} {
		for _, form := range []string{canary, base64.StdEncoding.EncodeToString([]byte(canary))} {
			if at := bytes.Index(seen, []byte(form)); at >= 0 {
				s.t.Errorf("%s: %q at byte %d of %d", where, form, at, len(seen))
			}
		}
	}
}

// processes collects the arguments and environments of every process that it gets to see.
type processes struct {
	done chan struct{}
	wait sync.WaitGroup
	seen map[string]bool
	// threads are the kernel's.
	threads map[string]bool
}

func watchProcesses() *processes {
	p := &processes{done: make(chan struct{}), seen: map[string]bool{}, threads: map[string]bool{}}
	p.wait.Go(func() {
		for {
			select {
			case <-p.done:
				return
			case <-time.After(10 * time.Millisecond):
				p.look()
			}
		}
	})
	return p
}

func (p *processes) look() {
	folders, _ := os.ReadDir("/proc")
	for _, folder := range folders {
		if name := folder.Name(); name[0] >= '0' && name[0] <= '9' && !p.threads[name] {
			p.lookAt(name)
		}
	}
}

func (p *processes) lookAt(pid string) {
	found := false
	for _, name := range []string{"cmdline", "environ"} {
		if content, err := os.ReadFile(filepath.Join("/proc", pid, name)); err == nil && len(content) > 0 {
			p.seen[string(content)], found = true, true
		}
	}
	if !found {
		_, err := os.Readlink(filepath.Join("/proc", pid, "exe"))
		p.threads[pid] = err != nil // or it has ended
	}
}

// end gives everything, and nothing if it never saw cryptsetup at work: then it has looked too seldom.
func (p *processes) end() []byte {
	close(p.done)
	p.wait.Wait()
	var all []byte
	for content := range p.seen {
		all = append(append(all, content...), '\n')
	}
	if !bytes.Contains(all, []byte("--test-passphrase")) || !bytes.Contains(all, []byte("--key-file\x00-")) {
		return nil
	}
	return all
}

// memoryOf is what root can read of the memory of a process.
func memoryOf(t *testing.T, pid int) []byte {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	var all bytes.Buffer
	for _, match := range regexp.MustCompile(`(?m)^([0-9a-f]+)-([0-9a-f]+) rw`).FindAllStringSubmatch(string(maps), -1) {
		var from, to int64
		if _, err := fmt.Sscanf(match[1]+" "+match[2], "%x %x", &from, &to); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(&all, io.NewSectionReader(memory, from, to-from)) // secret memory cannot be read: EIO
	}
	if !bytes.Contains(all.Bytes(), []byte("/var/lib/luksmediad")) {
		return nil // not even what must be there was seen
	}
	return all.Bytes()
}

// answers is what the daemon answers on both its listeners.
func answers(t *testing.T) []byte {
	t.Helper()
	var all []byte
	for _, path := range []string{"/livez", "/readyz?verbose", "/healthz?verbose", "/metrics", "/v1/status"} {
		_, body := get(t, path)
		all = append(all, body...)
		all = append(all, must(t, "curl", "-s", "--unix-socket", api.ControlSocket, "http://localhost"+path)...)
	}
	return all
}

// A daemon that crashes must leave no core file. A process beside it that crashes shows that it would.
func TestCrashLeavesNoCore(t *testing.T) {
	s := newSite(t)
	s.write(s.keyFile, keyFileCanary)
	s.create()
	cores := filepath.Join(s.dir, "cores")
	if err := os.Mkdir(cores, 0o700); err != nil {
		t.Fatal(err)
	}
	const patternFile = "/proc/sys/kernel/core_pattern"
	before, err := os.ReadFile(patternFile)
	if err != nil {
		t.Fatal(err)
	}
	s.write(patternFile, filepath.Join(cores, "%e"))
	t.Cleanup(func() { s.write(patternFile, strings.TrimSpace(string(before))) })
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: 1 << 30, Max: 1 << 30}); err != nil {
		t.Fatal(err)
	}

	control := exec.Command("sleep", "60")
	if err := control.Start(); err != nil {
		t.Fatal(err)
	}
	if err := control.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	_ = control.Wait()
	d := s.serve()
	d.end(syscall.SIGSEGV)

	found, err := filepath.Glob(filepath.Join(cores, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || filepath.Base(found[0]) != "sleep" {
		t.Errorf("core files: %q, want that of sleep alone", found)
	}
}
