//go:build kernel

package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/command"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/test/extents"
)

var (
	// errPanic stands for a panic.
	errPanic = errors.New("panic")
	// errKilled stands for the end of the process.
	errKilled = errors.New("killed")
)

// breaker runs programs and has an operation fail at one of its points, which are before and after every durable step. It watches the order
// of the keys meanwhile.
type breaker struct {
	command.Runner
	watcher
	route
	// point is the number of the one to fail at, or name what it is called.
	point int
	name  string
	fault error
	// lasts: no durable step succeeds from there on, those of taking back included, as on a disk that has died.
	lasts bool
	// where it has failed; "" as long as it has not.
	where string
	// versions are those of the programs that were asked before: it takes a while to start one. nil to ask always.
	versions map[string][]byte
	// proven: the recovery key was seen to open the container. early: the key of a machine was added before that.
	proven, early bool
}

func (b *breaker) pass(name string) error {
	name = b.place(name)
	if len(b.passed) == b.point || name == b.name {
		b.where = name
	} else if !b.lasts || b.where == "" {
		return nil
	}
	if errors.Is(b.fault, errPanic) {
		panic(b.fault)
	}
	return b.fault
}

func (b *breaker) Step(step Step) { b.step = step }

func (b *breaker) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if version, asked := b.versions[name]; asked && looks(args) && len(args) == 1 {
		return version, nil
	}
	output, err := b.Runner.Run(ctx, stdin, extra, name, args...)
	if err != nil {
		return output, err
	}
	if looks(args) && len(args) == 1 && b.versions != nil {
		b.versions[name] = output
	}
	if b.watch(args); looks(args) {
		return output, nil
	}
	return output, b.pass("after " + name + " " + args[0])
}

func (b *breaker) watch(args []string) {
	keyslot := func(option string) bool {
		at := slices.Index(args, option)
		return at >= 0 && args[at+1] == strconv.Itoa(recoveryKeyslot)
	}
	switch {
	case args[0] == "luksFormat":
		b.proven = false
	case args[0] == "luksAddKey":
		b.early = b.early || !b.proven && !keyslot("--new-key-slot")
	case slices.Contains(args, "--test-passphrase"):
		b.proven = b.proven || keyslot("--key-slot")
	}
}

// breakDown has the operation fail and tells where that was; "" if it came to its end.
func (s *site) breakDown(b *breaker, operation func(Observer) error) (where string) {
	s.t.Helper()
	healthy := s.Volume
	s.Volume = New(s.config, s.paths, b)
	s.failpoint = b.pass
	defer func() { s.Volume = healthy }()
	err := recovered(func() error { return operation(b) })
	if b.where != "" && !errors.Is(err, b.fault) || b.where == "" && err != nil {
		s.t.Fatalf("failed %s by %v: %v", b.where, b.fault, err)
	}
	reasons := map[error]health.Reason{unix.ENOSPC: health.ReasonNoSpace, unix.EIO: health.ReasonIO}
	if want, known := reasons[b.fault]; known && b.where != "" && health.ReasonOf(err) != want {
		s.t.Errorf("failed %s: %v is %q, not %q", b.where, err, health.ReasonOf(err), want)
	}
	if b.early {
		s.t.Errorf("before %s the key of a machine was added, and the recovery key was not proven", b.where)
	}
	return b.where
}

// recovered makes an error of a panic.
func recovered(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = r.(error)
		}
	}()
	return do()
}

// breaking is an operation that fails everywhere, by every fault.
type breaking struct {
	*site
	// what is the operation in a child that is killed; "" for none.
	what      string
	operation func(Observer) error
	// begin prepares it anew, whatever has become of it.
	begin func()
	// failed looks at what is left, and tells whether that is all the same what is left at the end.
	failed func(b *breaker) (ended bool)
	// ended looks at what is left at the end.
	ended func()
	// only are the points to fail at; nil for all.
	only []string
}

// everywhere has the operation fail at each of its points: killed, on a disk that dies, so that nothing can be taken back either, by a panic,
// and on a full disk. Each time it goes on from what the failure before has left; where it no longer comes to the point, to its end.
func (b breaking) everywhere() (cases int) {
	b.t.Helper()
	b.begin()
	whole := &breaker{versions: map[string][]byte{}}
	b.breakDown(whole, b.operation)
	b.end("never failed")
	points := slices.DeleteFunc(whole.passed, func(name string) bool { return b.only != nil && !slices.Contains(b.only, name) })
	for _, name := range points {
		for _, fault := range []breaker{{fault: errKilled}, {fault: unix.EIO, lasts: true}, {fault: errPanic}, {fault: unix.ENOSPC}} {
			if errors.Is(fault.fault, errKilled) && b.what == "" {
				continue
			}
			fault.name, fault.versions = name, whole.versions
			failed := fault
			if b.fail(&failed); failed.where == "" {
				b.end("went on past " + name)
				failed = fault
				b.fail(&failed)
			}
			if failed.where != name {
				b.t.Fatalf("never came to %s", name)
			}
			if cases++; b.failed(&failed) {
				b.end("failed " + name)
			}
		}
		b.t.Log(name)
	}
	b.t.Logf("%d cases", cases)
	return cases
}

func (b breaking) fail(by *breaker) {
	b.t.Helper()
	if errors.Is(by.fault, errKilled) {
		by.where = b.crashAt(b.what, by.name)
		return
	}
	b.breakDown(by, b.operation)
}

func (b breaking) end(where string) {
	b.t.Helper()
	b.ended()
	if b.t.Failed() {
		b.t.Fatal(where)
	}
	b.begin()
}

// faults 1 to 6: what is killed, fails or panics before or after any durable step of a create leaves nothing that is taken for a volume, and
// the next create comes to its end. On a disk that works everything is as it was before.
func TestCreateFailsAnywhere(t *testing.T) {
	t.Run("file", func(t *testing.T) {
		s := newSite(t, withSecondStore)
		if cases := s.createEverywhere(nil); cases < 110 {
			t.Error("only these")
		}
	})
	t.Run("device and xfs", func(t *testing.T) {
		s := newSite(t)
		s.connectDevice(320)
		s = s.again(withXFS, onDevice, withSecondStore)
		s.createEverywhere([]string{"allocate: after journal", "format: after the header's first block",
			"format: after header", "make filesystem: after mkfs.xfs -q",
			"mount: after marker"})
	})
}

// createEverywhere creates a volume beside a store in clear text, which stays as it is.
func (s *site) createEverywhere(only []string) (cases int) {
	s.t.Helper()
	plain := filepath.Join(s.config.Stores[1].Path, "picture")
	s.mkdir(filepath.Dir(plain))
	s.write(plain, clearText)
	var before string
	return breaking{
		site: s, what: "create", only: only,
		begin:     func() { s.makeBlank(); before = s.picture() },
		operation: func(observer Observer) error { return s.tryCreate(s.t.Context(), observer) },
		failed: func(b *breaker) (ended bool) {
			s.requireContent(plain, clearText)
			if _, err := s.loadRecord(); err == nil {
				s.requireError(s.tryCreate(s.t.Context(), &watcher{}), StepPreflight, ErrAlreadySetUp)
				return true
			}
			s.requireUnusable()
			s.requireRecoveryFirst(b.where)
			if errors.Is(b.fault, unix.ENOSPC) {
				s.awaitDetached()
				s.requireUnchanged(before)
				s.requireBlank()
			}
			return false
		},
		ended: func() {
			s.requireNoJournal()
			backups, err := filepath.Glob(filepath.Join(s.paths.State, headersFolder, "*"))
			if err != nil || len(backups) != 1 {
				s.t.Errorf("header backups %v, %v", backups, err)
			}
			s.requireKeeping()
		},
	}.everywhere()
}

// makeBlank leaves nothing of a volume, and the store an empty directory.
func (s *site) makeBlank() {
	s.t.Helper()
	s.tearDown()
	container, err := openContainer(s.container, os.O_RDWR)
	if err == nil && container.block {
		err = container.wipe()
	} else if err == nil {
		err = os.Remove(s.container)
	}
	if container != nil {
		err = errors.Join(err, container.Close())
	}
	if !errors.Is(err, ErrContainerMissing) {
		s.must(err)
	}
	s.must(errors.Join(os.RemoveAll(s.keyFile), os.RemoveAll(s.paths.State), os.RemoveAll(s.store), os.Mkdir(s.store, 0o750)))
}

// awaitDetached gives udev the time to let go of a loop device that has lost its file.
func (s *site) awaitDetached() {
	s.t.Helper()
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		s.must(err)
		if !slices.ContainsFunc(files, func(file string) bool {
			carried, err := os.ReadFile(file)
			return err == nil && strings.HasPrefix(string(carried), s.dir+"/")
		}) {
			return
		}
	}
}

// requireBlank wants a device to be as if nothing had been on it.
func (s *site) requireBlank() {
	s.t.Helper()
	if !isDevicePath(s.container) {
		return
	}
	container, err := openContainer(s.container, os.O_RDONLY)
	s.must(err)
	defer container.Close()
	s.must(checkBlank(container))
}

// requireKeeping wants a closed volume that keeps what is written into its store, and nothing of that in clear text: in no raw block, and
// under no mount point.
func (s *site) requireKeeping() {
	s.t.Helper()
	s.open()
	s.write(filepath.Join(s.store, "canary"), clearText)
	s.requireEncrypted()
	s.close()
	s.requireClosed()
	s.requireNothingUnder()
}

// requireNothingUnder wants the mount points of a closed volume to be empty, and guarded.
func (s *site) requireNothingUnder() {
	s.t.Helper()
	s.requireGuarded(s.Root(), s.store)
	for _, path := range []string{s.Root(), s.store} {
		if entries, err := os.ReadDir(path); err != nil || len(entries) != 0 {
			s.t.Errorf("under %s: %v, %v", path, entries, err)
		}
	}
}

// requireRecoveryFirst wants no keyslot of a machine without that of the recovery key.
func (s *site) requireRecoveryFirst(where string) {
	s.t.Helper()
	container, err := openContainer(s.container, os.O_RDONLY)
	if err != nil {
		return // there is none
	}
	defer container.Close()
	header, err := luks2.Read(container, container.bytes)
	if err != nil {
		return // not formatted
	}
	for keyslot := range header.Metadata.Keyslots {
		if _, first := header.Metadata.Keyslots[recoveryKeyslot]; !first && keyslot != formatKeyslot {
			s.t.Errorf("%s: keyslot %d and none of the recovery key", where, keyslot)
		}
	}
}

// faults 1 and 8: the same for a container of somebody else, whose files all become the store's.
func TestAdoptFailsAnywhere(t *testing.T) {
	t.Run("file", func(t *testing.T) {
		s := newSite(t)
		if cases := s.adoptEverywhere(s.makeFilled, nil); cases < 65 {
			t.Error("only these")
		}
	})
	t.Run("device and xfs", func(t *testing.T) {
		s := newSite(t)
		s.connectDevice(320)
		s = s.again(withXFS, onDevice)
		foreign := foreign{luks: []string{"--sector-size", "4096"}, mkfs: []string{"mkfs.xfs", "-q", "-K"}, fill: fillWithFiles(".")}
		s.adoptEverywhere(func() { foreign.make(s) }, []string{"unlock: after cryptsetup open", "record: after cryptsetup luksHeaderBackup"})
	})
}

// adoptEverywhere adopts a container that format makes.
func (s *site) adoptEverywhere(format func(), only []string) (cases int) {
	s.t.Helper()
	files := map[string]string{"local_content/picture": "moved", "other": "moved too"}
	whole := map[string]string{"media": "."}
	describe := func() string { return s.run("stat", "--format", "%i %a %u:%g", s.store) }
	var before string
	return breaking{
		site: s, what: "adopt", only: only,
		begin:     func() { s.makeBlank(); format(); before = describe() },
		operation: func(observer Observer) error { return readopt(s, whole, observer) },
		failed: func(b *breaker) (ended bool) {
			if _, err := s.loadRecord(); err == nil {
				s.requireError(s.adopt(whole), StepPreflight, ErrAlreadySetUp)
				return true
			}
			_, err := s.Open(s.t.Context(), s.passphrase(foreignPassphrase), &watcher{})
			if !errors.Is(err, ErrAdopting) && !errors.Is(err, ErrNotSetUp) {
				s.t.Errorf("%v %s: %v", b.fault, b.where, err)
			}
			if errors.Is(b.fault, unix.ENOSPC) {
				s.awaitDetached()
				s.requireClosed()
				if after := describe(); after != before {
					s.t.Errorf("%v %s: the store was %s and is %s", b.fault, b.where, before, after)
				}
			}
			return false
		},
		ended: func() {
			s.requireAdopted(files)
			s.requireNothingUnder()
			if at, err := extents.Index(cmp.Or(s.image, s.container), []byte(files["other"])); at >= 0 || err != nil {
				s.t.Errorf("clear text at byte %d of the container, %v", at, err)
			}
		},
	}.everywhere()
}

// faults 32 to 34: what fails before or after any durable step of a growth, or panics there, leaves the volume open with all that is in it,
// and the next growth comes to its end.
func TestGrowFailsAnywhere(t *testing.T) {
	t.Run("file", func(t *testing.T) {
		if cases := newGrowingFile(t).failEverywhere(); cases < 24 {
			t.Error("only these")
		}
	})
	t.Run("device and xfs", func(t *testing.T) {
		if cases := newGrowingDevice(t, 384, withXFS).failEverywhere(); cases < 18 {
			t.Error("only these")
		}
	})
}

// failEverywhere has the volume grow, and fail at it, again and again.
func (g *growingSite) failEverywhere() (cases int) {
	g.t.Helper()
	var unchanged func(where string)
	turn := 0
	grow := func(observer Observer) error {
		_, err := g.Grow(g.t.Context(), g.Sources(), g.anew(turn), observer)
		return err
	}
	cases = breaking{
		site:      g.site,
		begin:     func() { turn++; unchanged = g.next(fmt.Sprint("before ", turn)) },
		operation: grow,
		failed: func(b *breaker) (ended bool) {
			unchanged(fmt.Sprint(b.fault, " ", b.where))
			if errors.Is(b.fault, unix.ENOSPC) {
				g.must(grow(&watcher{}))
				return true
			}
			return false
		},
		ended: func() { unchanged("grown"); g.requireSize(g.bytes) },
	}.everywhere()
	g.requireEncrypted()
	g.close()
	g.requireNothingUnder()
	return cases
}
