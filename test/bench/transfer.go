package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/transfer"
	"luksmediad/pkg/mount"
)

// site is a source on the machine's own disk, and a filesystem to copy it to.
type site struct {
	dir, source, target, state, device string
	turn                               int
	inodes                             int // of the filesystem, with room for what is copied
	said                               []byte
}

// newSite makes the source and a file container.
func newSite(dir string, files int) (*site, error) {
	s := &site{dir: dir, source: filepath.Join(dir, "source"), target: filepath.Join(dir, "target"), inodes: 3*files + 10_000}
	tree := store{path: s.source, files: files, large: files / 400}
	return s, errors.Join(os.Mkdir(s.target, 0o700), run("fallocate", "--length", fmt.Sprint(containerFor(files)), s.image()), tree.make())
}

// image is the file container, key the file with its key where it is encrypted.
func (s *site) image() string { return filepath.Join(s.dir, "image") }
func (s *site) key() string   { return filepath.Join(s.dir, "key") }

// attach gives the file container the loop device that luksmediad gives it.
func (s *site) attach() (*mount.Loop, error) {
	file, err := os.OpenFile(s.image(), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return attach(file)
}

// losetup gives it one as others do, which goes when it is closed and no longer mounted, however this program ends: losetup(8) leaves a
// device in use to the kernel.
func (s *site) losetup() (*os.File, error) {
	output, err := exec.Command("losetup", "--sector-size", fmt.Sprint(sectorBytes), "--find", "--show", s.image()).Output()
	if err != nil {
		return nil, err
	}
	path := strings.TrimSpace(string(output))
	loop, err := os.Open(path)
	return loop, errors.Join(err, run("losetup", "--detach", path))
}

// renew gives an empty filesystem, which is written out already.
func (s *site) renew() error {
	s.turn++
	s.state = filepath.Join(s.dir, fmt.Sprintf("state%d", s.turn))
	if err := errors.Join(s.unmount(), os.Mkdir(s.state, 0o700)); err != nil {
		return err
	}
	if err := s.format(); err != nil {
		return err
	}
	return runAll([][]string{
		{"mount", s.device, s.target},
		{"mkdir", "--mode=0700", s.store()},
		{"sync", "--file-system", s.target},
	})
}

// format tries again for a while: a sync(2) of anybody holds a filesystem that is unmounted.
func (s *site) format() (err error) {
	for range 100 {
		err = run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
			"-N", strconv.Itoa(s.inodes), s.device)
		if err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func (s *site) store() string { return filepath.Join(s.target, "store") }

func (s *site) unmount() error {
	err := unix.Unmount(s.target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) { // nothing is mounted
		return nil
	}
	return err
}

// cool drops the page cache and every inode that is not in use, of the whole machine (proc_sys_vm(5)).
func cool() error { return drop("3") }

func drop(what string) error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte(what), 0)
}

// child is one of luksmediad's operations in a process of its own, for its time and its memory.
func (s *site) child(operation string) (maxRSS int64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	job, err := json.Marshal(job{operation, s.source, s.store(), s.state, s.device})
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, "job", string(job))
	if s.said, err = cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("cannot %s: %w: %s", operation, err, s.said)
	}
	return cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10, nil
}

func (s *site) do(operation string) func() error {
	return func() error {
		_, err := s.child(operation)
		return err
	}
}

// job is what a child does.
type job struct {
	Operation, From, To, State, Device string
}

// run gives itself what luksmediad migrate does.
func (j job) run() error {
	transfer.OwnProcess()
	ctx := context.Background()
	o := transfer.Options{State: j.State}
	switch j.Operation {
	case "copy":
		_, err := transfer.Copy(ctx, j.From, j.To, o)
		return err
	case "copy and verify":
		m, err := transfer.Copy(ctx, j.From, j.To, o)
		if err != nil {
			return err
		}
		return j.verify(ctx, m, nil)
	case "move":
		return j.move(ctx)
	case "delta":
		m, err := transfer.Open(o.ManifestPath())
		if err != nil {
			return err
		}
		_, err = transfer.Delta(ctx, j.From, j.To, m, o)
		return err
	}
	return fmt.Errorf("no operation %q", j.Operation)
}

// move prints the milliseconds of a whole move in which one file of a hundred is new by the time the service stops, and of the part
// in which it is stopped.
func (j job) move(ctx context.Context) error {
	began := time.Now()
	verified, err := transfer.Copy(ctx, j.From, j.To, transfer.Options{State: j.State})
	if err != nil {
		return err
	}
	if err := j.verify(ctx, verified, nil); err != nil {
		return err
	}
	live := time.Since(began)
	news := store{path: filepath.Join(j.From, "new"), files: int(verified.Totals.Files) / 100}
	if err := news.make(); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond)
	began = time.Now()
	if err := j.stop(ctx, verified); err != nil {
		return err
	}
	stopped := time.Since(began)
	fmt.Println(milliseconds(live+stopped), milliseconds(stopped))
	return nil
}

// stop is what happens while the service is stopped.
func (j job) stop(ctx context.Context, verified *transfer.Manifest) error {
	o := transfer.Options{State: j.State}
	m, err := transfer.Delta(ctx, j.From, j.To, verified, o)
	if err != nil {
		return err
	}
	if err := j.verify(ctx, m, verified); err != nil {
		return err
	}
	return transfer.Unchanged(ctx, j.From, m, o)
}

func (j job) verify(ctx context.Context, m, verified *transfer.Manifest) error {
	proof, err := transfer.Verify(ctx, j.To, m, transfer.VerifyOptions{
		Options: transfer.Options{State: j.State}, Device: j.Device, Verified: verified,
	})
	if err == nil && proof.DeviceRefused != nil {
		err = proof.DeviceRefused
	}
	return err
}

func (s *site) rsync(options ...string) error {
	return run("rsync", append(options, s.source+"/", s.store()+"/")...)
}

func (s *site) rsyncAndSync() error {
	return errors.Join(s.rsync("-aHAX"), run("sync", "--file-system", s.target))
}

// rsyncTwice drops the page cache in between: without it, the second run would compare what is in memory. That does not count, and
// leaves rsync the inodes, which luksmediad finds in memory, too.
func (s *site) rsyncTwice() (float64, error) {
	copied, err := turns{prepare: s.fresh}.time(s.rsyncAndSync)
	if err != nil {
		return 0, err
	}
	pages := func() error { return drop("1") }
	compared, err := turns{prepare: pages}.time(func() error { return s.rsync("-aHAXcn", "--delete") })
	return copied + compared, err
}

// fresh is before every turn that copies.
func (s *site) fresh() error { return errors.Join(s.renew(), cool()) }

// measureTransfer takes the figures of moving in.
func (s *site) measureTransfer(runs int) ([]figure, error) {
	verified := figure{name: "copy and verify from the disk, beside rsync -aHAX, then rsync -aHAXcn --delete", unit: "ms"}
	bare := figure{name: "the same, beside rsync -aHAX alone, which verifies nothing", unit: "ms"}
	first := figure{name: "copy alone, beside rsync -aHAX", unit: "ms"}
	once := func(do func() error) func() (float64, error) {
		return func() (float64, error) { return turns{prepare: s.fresh}.time(do) }
	}
	for range runs {
		for _, side := range []struct {
			time func() (float64, error)
			into []*[]float64
		}{
			{once(s.do("copy and verify")), []*[]float64{&verified.ours, &bare.ours}},
			{s.rsyncTwice, []*[]float64{&verified.peer}},
			{once(s.do("copy")), []*[]float64{&first.ours}},
			{once(s.rsyncAndSync), []*[]float64{&bare.peer, &first.peer}},
		} {
			took, err := side.time()
			if err != nil {
				return nil, err
			}
			for _, values := range side.into {
				*values = append(*values, took)
			}
		}
	}
	again, err := s.measureAgain(runs)
	return append([]figure{verified, bare, first}, again...), err
}

// measureAgain takes the figures of the time in which the service is stopped, and of memory.
func (s *site) measureAgain(runs int) ([]figure, error) {
	warm := figure{name: "second pass, nothing changed, warm, beside rsync -aHAX --delete", unit: "ms"}
	cold := figure{name: "second pass, nothing changed, cold, beside rsync -aHAX --delete", unit: "ms"}
	if err := errors.Join(s.fresh(), s.do("copy")()); err != nil {
		return nil, err
	}
	// What was younger than the copy is copied once more, whatever it is.
	time.Sleep(3 * time.Second)
	second := func() error { return s.rsync("-aHAX", "--delete") }
	if err := errors.Join(s.do("delta")(), (turns{}).compare(&warm, runs, s.do("delta"), second)); err != nil {
		return nil, err
	}
	if err := (turns{prepare: cool}).compare(&cold, runs, s.do("delta"), second); err != nil {
		return nil, err
	}
	stopped, err := s.measureStop(runs)
	return []figure{warm, cold, stopped}, err
}

// measureStop compares the time in which the service is stopped, but for stopping and starting it, with that of the whole move; a
// hundredth of the files is new.
func (s *site) measureStop(runs int) (figure, error) {
	f := figure{name: "delta, verification and last look with 1 % new files, beside the whole move", unit: "ms"}
	for range runs {
		if err := errors.Join(s.fresh(), s.do("move")(), os.RemoveAll(filepath.Join(s.source, "new"))); err != nil {
			return f, err
		}
		var whole, stopped float64
		if _, err := fmt.Sscan(string(s.said), &whole, &stopped); err != nil {
			return f, fmt.Errorf("cannot read %q: %w", s.said, err)
		}
		f.ours, f.peer = append(f.ours, stopped), append(f.peer, whole)
	}
	return f, nil
}

// measureMemory copies and verifies so many entries.
func (s *site) measureMemory(entries int) (figure, error) {
	f := figure{name: fmt.Sprintf("largest resident memory while %d entries are copied and verified", entries), unit: "MiB"}
	before := *s
	defer func() { s.source, s.inodes = before.source, before.inodes }()
	s.source, s.inodes = filepath.Join(s.dir, "many"), entries+entries/100+10_000
	if err := errors.Join(os.Mkdir(s.source, 0o755), flat(s.source, entries), s.fresh()); err != nil {
		return f, err
	}
	most, err := s.child("copy and verify")
	f.ours = []float64{float64(most) / (1 << 20)}
	return f, errors.Join(err, os.RemoveAll(s.source))
}
