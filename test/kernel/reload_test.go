//go:build kernel

package kernel

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// identity is what a reload leaves as it is: the process and the mounts.
type identity struct {
	pid, root, store int
}

func (s *site) identity(d *daemon) identity {
	s.t.Helper()
	return identity{pid: d.cmd.Process.Pid, root: mountAt(s.t, s.root()).ID, store: mountAt(s.t, s.store).ID}
}

// requireSame wants the process to live, the mounts to be the same ones, and the store to be the volume's.
func (s *site) requireSame(d *daemon, before identity) {
	s.t.Helper()
	if err := d.cmd.Process.Signal(syscall.Signal(0)); err != nil {
		s.t.Fatal(err)
	}
	if now := s.identity(d); now != before {
		s.t.Errorf("before the reload %+v, now %+v", before, now)
	}
	if pid := s.status().PID; pid != before.pid {
		s.t.Errorf("process %d answers, not %d", pid, before.pid)
	}
	s.requireOpen()
}

// hangUp is what systemd's "kill -HUP $MAINPID" does.
func (d *daemon) hangUp() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
}

// staleAfter is when a probe counts as late, in the daemon's own words: three intervals.
func staleAfter(t *testing.T) string {
	t.Helper()
	return sample(t, `luksmediad_probe_stale_after_seconds{probe="write"}`)
}

// edit replaces a text in the configuration.
func (s *site) edit(from, to string) {
	s.t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil || !strings.Contains(string(text), from) {
		s.t.Fatalf("no %q in the configuration: %v", from, err)
	}
	s.write(s.config, strings.ReplaceAll(string(text), from, to))
}

// watch asks for /healthz all the time, with a new connection each time, and gives what was not 200.
func watch(t *testing.T) (stop func() (asked int, wrong []string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var asked int
	var wrong []string
	impatient := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	running.Go(func() {
		for ; ctx.Err() == nil; asked++ {
			answer, err := impatient.Get(address + "/healthz")
			if err != nil {
				wrong = append(wrong, err.Error())
				continue
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				wrong = append(wrong, answer.Status)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return func() (int, []string) {
		cancel()
		running.Wait()
		return asked, wrong
	}
}

// What is wrong stays out of force, what is right takes effect in the same process, and whoever asks meanwhile gets an answer.
//
// fault 75
func TestReload(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	requireHealthy(t)
	before := s.identity(d)
	requireMetric(t, "luksmediad_config_reload_success", 1)
	stop := watch(t)

	s.edit("interval: 2s", "interval: soon")
	d.hangUp()
	var body string
	eventually(t, "the refusal", func() bool {
		_, body = get(t, "/healthz?verbose")
		return strings.Contains(body, "[!]configuration degraded")
	})
	if !strings.Contains(body, "soon") || !strings.Contains(body, "type: "+s.typed("config check; systemctl reload luksmediad")) {
		t.Error(body)
	}
	requireMetric(t, "luksmediad_config_reload_success", 0)
	if after := staleAfter(t); after != "6" {
		t.Errorf("stale after %s s", after)
	}
	if now := s.identity(d); now != before {
		t.Errorf("before the reload %+v, now %+v", before, now)
	}

	s.edit("interval: soon", "interval: 4s")
	d.hangUp()
	eventually(t, "the new interval", func() bool { return staleAfter(t) == "12" })
	requireHealthy(t)
	requireMetric(t, "luksmediad_config_reload_success", 1)
	s.requireSame(d, before)
	if asked, wrong := stop(); asked < 10 || len(wrong) > 0 {
		t.Errorf("asked %d times during the reloads: %q", asked, wrong)
	}
	if d.count("READY=1") != 3 || d.count("RELOADING=1") != 2 || d.said("STOPPING=1") {
		t.Errorf("notices: %q", d.service.heard())
	}
	if comm := strings.TrimSpace(must(t, "cat", "/proc/"+strconv.Itoa(before.pid)+"/comm")); comm != "luksmediad" {
		t.Errorf("the process is called %s", comm)
	}

	d.end(syscall.SIGTERM)
	if _, err := os.Stat("/run/luksmediad/control.sock"); err == nil {
		t.Error("the control socket was left behind")
	}
	s.requireOpen()
}

// The command says what is wrong, and why not now; what is locked stays locked and takes what an open volume cannot.
//
// fault 75
func TestReloadByCommand(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	s.succeed("config", "reload")
	s.requireOpen()

	s.edit("interval: 2s", "interval: soon")
	s.refuses("config", 2, "config", "reload")
	requireMetric(t, "luksmediad_config_reload_success", 0)
	s.edit("interval: soon", "interval: 2s")
	s.edit("container: "+s.container, "container: "+s.container+"-2")
	s.refuses("settings", 15, "config", "reload")
	s.refuses("settings", 15, "config", "check")
	s.edit("container: "+s.container+"-2", "container: "+s.container)
	s.edit("name: "+s.volume, "name: another")
	s.refuses("volume_open", 15, "config", "reload")
	for _, asked := range []string{"lock", "unlock", "status"} {
		s.refuses("other_volume", 15, asked, "--yes")
	}
	s.edit("name: another", "name: "+s.volume)
	s.edit("stores:\n", "stores:\n  - {name: other, path: "+filepath.Join(s.dir, "missing/other")+"}\n")
	s.refuses("not_found", 1, "config", "reload")
	if r := s.call("config", "check"); r.code != 1 || !strings.Contains(r.stderr, "mkdir -p "+filepath.Join(s.dir, "missing")) {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	s.edit("  - {name: other, path: "+filepath.Join(s.dir, "missing/other")+"}\n", "")
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:10166")
	if err != nil {
		t.Fatal(err)
	}
	s.edit("unlock:\n", "http: {listen: 127.0.0.1:10166}\nunlock:\n")
	s.refuses("address_in_use", 1, "config", "reload")
	taken.Close()
	s.edit("http: {listen: 127.0.0.1:10166}\n", "")
	s.requireOpen()
	requireMetric(t, "luksmediad_config_reload_success", 0)
	s.succeed("config", "reload")
	requireMetric(t, "luksmediad_config_reload_success", 1)

	s.succeed("lock", "--yes")
	s.edit("interval: 2s", "interval: 3s")
	s.succeed("config", "reload")
	s.requireClosed()
	if phase := s.status().Phase; phase != "locked" {
		t.Errorf("phase %s", phase)
	}
	s.succeed("unlock")
	s.requireOpen()
	if after := staleAfter(t); after != "9" {
		t.Errorf("stale after %s s", after)
	}
	if d.said("STOPPING=1") {
		t.Errorf("notices: %q", d.service.heard())
	}
}

// What works on the volume is not cut short, and is waited for.
func TestReloadWaitsForTheVolume(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	lock := exec.Command("flock", "/run/luksmediad/"+s.volume+".lock", "sh", "-c", "echo; exec sleep 3")
	output, err := lock.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(output).ReadString('\n'); err != nil { // it has the lock
		t.Fatal(err)
	}
	s.edit("interval: 2s", "interval: 3s")
	d.hangUp()
	d.awaitNotice("RELOADING=1")
	if after := staleAfter(t); after != "6" {
		t.Errorf("reloaded while another process works on the volume")
	}
	if err := lock.Wait(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new interval", func() bool { return staleAfter(t) == "9" })
	s.requireOpen()
}

// The sockets of systemd go on from process image to process image.
func TestReloadKeepsActivatedSockets(t *testing.T) {
	s := newCreated(t)
	d := s.startActivated(filepath.Join(s.dir, "control.sock"))
	eventually(t, "an answer", func() bool { return listensAt(strings.TrimPrefix(address, "http://")) })
	d.awaitNotice("READY=1")
	requireHealthy(t)
	for _, interval := range []struct{ now, next, stale string }{{"2s", "3s", "9"}, {"3s", "4s", "12"}} {
		inode := socketInode(t, 10165)
		s.edit("interval: "+interval.now, "interval: "+interval.next)
		stop := watch(t)
		d.hangUp()
		eventually(t, "the new interval", func() bool { return staleAfter(t) == interval.stale })
		if asked, wrong := stop(); asked == 0 || len(wrong) > 0 {
			t.Errorf("asked %d times: %q", asked, wrong)
		}
		if now := socketInode(t, 10165); now != inode {
			t.Errorf("socket %s was %s", now, inode)
		}
		s.requireOpen()
	}
}

// startActivated is start below systemd-socket-activate(1), which becomes the daemon at the first connection.
func (s *site) startActivated(control string) *daemon {
	s.t.Helper()
	d := s.startBy("systemd-socket-activate", "--setenv=NOTIFY_SOCKET", "--listen="+control, "--listen=127.0.0.1:10165",
		binary(s.t), "--config", s.config, "run")
	eventually(s.t, "the control socket", func() bool { return os.Chmod(control, 0o660) == nil })
	return d
}

// socketInode identifies the socket that listens on a port of IPv4.
func socketInode(t *testing.T, port int) string {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 9 && fields[3] == "0A" && strings.HasSuffix(fields[1], ":"+strings.ToUpper(strconv.FormatInt(int64(port), 16))) {
			return fields[9]
		}
	}
	t.Fatalf("nobody listens on port %d", port)
	return ""
}
