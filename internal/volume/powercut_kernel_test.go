//go:build kernel

package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
)

// recordMoves records everything that is done with a store, each time with files in it that came right before.
func (s *site) recordMoves(r *recording) {
	s.t.Helper()
	for i, what := range []string{"migrate", "rollback", "migrate", "purge", "grow"} {
		s.uploadDurably(fmt.Sprintf("%d before %s", i, what))
		w := s.marking(r, what)
		step := w.before
		w.before = func(begun Step) {
			if what == "migrate" && begun == StepVerify { // it is copied, and the service still runs
				r.mark(mark{what: what, name: "copied", rest: true})
				s.uploadDurably(fmt.Sprintf("%d while it is verified", i))
			}
			step(begun)
		}
		s.must(s.do(what, w))
		s.failpoint = nil
		r.mark(mark{what: what, name: "ended", ended: true, rest: true})
	}
}

// marking marks the beginning of an operation, and with the observer the beginnings of its steps and where each durable one ends, until
// there is no failpoint.
func (s *site) marking(r *recording, what string) *watcher {
	r.mark(mark{what: what, name: "begun"})
	s.failpoint = func(point string) error { r.mark(mark{what: what, name: point}); return nil }
	return &watcher{before: func(step Step) { r.mark(mark{what: what, name: "in step " + string(step)}) }}
}

// uploadDurably is an upload that the service, or its filesystem after a while, has made durable.
func (s *site) uploadDurably(name string) {
	s.t.Helper()
	s.upload(name)
	s.syncFS(s.store)
	s.syncFS(s.dir)
}

func (s *site) do(what string, observer Observer) (err error) {
	if what == "grow" {
		_, err = s.Grow(s.t.Context(), s.Sources(), s.growOptions(), observer)
		return err
	}
	_, err = s.operation(what)(s.t.Context(), s.moveOptions(), observer)
	return err
}

func (s *site) growOptions() GrowOptions {
	if isDevicePath(s.container) {
		return GrowOptions{}
	}
	return GrowOptions{To: s.grownTo()}
}

// grownTo is the size of the container in the end.
func (s *site) grownTo() int64 {
	if isDevicePath(s.container) {
		return s.containerBytes()
	}
	return grownBytes
}

// requireRecovered boots from what a power failure has left, and ends what it has interrupted.
func (s *site) requireRecovered(m moment) {
	s.t.Helper()
	where := m.what + ", " + m.name
	s.comeUp(where, s.startsAtBoot())
	if m.ended {
		s.requireDone(m.what)
	}
	s.finish(m.what)
	s.requireServing(where + ", and once more")
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// finish does it once more, and to its end.
func (s *site) finish(what string) {
	s.t.Helper()
	switch what {
	case "migrate", "grow":
		s.must(s.do(what, &watcher{}))
	default:
		s.complete(what) // of which nothing may be left to do
	}
	s.requireDone(what)
}

// requireDone wants the operation to have come to its end, and all of that to be durable.
func (s *site) requireDone(what string) {
	s.t.Helper()
	switch what {
	case "migrate":
		s.requireBound()
		if stores, err := s.Stores(); err != nil || stores[0].State != StoreEncrypted || stores[0].Unfinished || !stores[0].Old {
			s.t.Errorf("moved in: %+v, %v", stores, err)
		}
	case "rollback":
		s.requirePlain()
		if left, err := os.ReadDir(filepath.Join(s.PrivateDir(), "discarded")); !errors.Is(err, os.ErrNotExist) {
			s.t.Errorf("the copy is left: %v, %v", left, err)
		}
	case "purge":
		s.requireBound()
		s.requireNothingAside()
		if all, err := s.loadMoves(); err != nil || len(all.Moves) != 0 {
			s.t.Errorf("purged: %+v, %v", all, err)
		}
		if left, err := os.ReadDir(filepath.Join(s.PrivateDir(), movesFolder)); err != nil || len(left) != 0 {
			s.t.Errorf("manifests are left: %v, %v", left, err)
		}
	case "grow":
		s.requireSize(s.grownTo())
	}
}

// everyMoment is a variable that has them all replayed, which takes minutes: LUKSMEDIAD_EVERY_MOMENT=1 test/kernel/run TestPowerCut.
const everyMoment = "LUKSMEDIAD_EVERY_MOMENT"

// testRecorded records what is done with a store and replays so many moments of it, or some more, evenly spread.
func (s *site) testRecorded(count int) {
	s.t.Helper()
	s.close()
	r := s.power.record()
	s.open()
	s.recordMoves(r)
	s.testReplayed(r, count, s.requireRecovered)
}

// testReplayed has so many moments of a recording looked at, or some more, evenly spread.
func (s *site) testReplayed(r *recording, count int, look func(moment)) {
	s.t.Helper()
	r.end()
	all := r.moments()
	if len(all) < 2*count {
		s.t.Errorf("only %d moments: the disks were not flushed, or the log says so", len(all))
	}
	some := all
	if os.Getenv(everyMoment) == "" {
		some = sample(all, count)
	}
	r.replay(some, look)
	s.t.Logf("%d of %d moments", len(some), len(all))
}

// faults 14, 22 to 25, 28, 30, 32 and 33: whatever had become durable when the power failed, in the order in which the disk had said so,
// exactly one store is complete, the service starts on no other, and the same command comes to its end. All is on one disk.
func TestPowerCutAfterFlush(t *testing.T) {
	s := newSite(t, withService)
	s.onDisks(&powered{name: filesDisk, folder: s.dir, filesystem: mount.Ext4, mebibytes: 256})
	s.setUpPlaintext()
	s.testRecorded(20)
}

// The same for an xfs on a block device. The files outside, on xfs too, and what luksmediad remembers have disks of their own: at the marks
// nothing is left on any of the three but what had to be.
func TestPowerCutOfDisks(t *testing.T) {
	s := newSite(t)
	device := &powered{name: deviceName, mebibytes: 320} // xfs takes no less than 300
	s.onDisks(&powered{name: filesDisk, folder: s.dir, filesystem: mount.XFS, mebibytes: 320},
		&powered{name: stateDisk, folder: s.paths.State, filesystem: mount.Ext4, mebibytes: 64}, device)
	s = s.again(onDevice, withXFS, onDevice, withService)
	s.makePlaintext()
	s.openPlaintext()
	device.enlarge(384)
	s.testRecorded(10)
}

// What the service has written right before it was stopped is nowhere but in memory. The old files have it all the same when the power fails.
func TestPowerCutAfterMove(t *testing.T) {
	s := newSite(t, withService)
	s.onPower()
	s.setUpPlaintext()
	unix.Sync()
	s.power.cuts = 2 // nothing is written at the moment of the cut
	s.must(s.do("migrate", &watcher{before: func(step Step) {
		if step == StepStop {
			s.uploadLast("last outside")
		}
	}}))
	s.power.cut()
	s.requireContent(filepath.Join(s.asides()[0], "media_store/local_content/last outside"), clearText+"last outside")
	s.comeUp("moved in", true)
	s.rollback()
	s.requireServing("went back")
	s.requirePlain()
}

// The same of the way back, which the power cut takes back.
func TestPowerCutBeforeReturn(t *testing.T) {
	s := newSite(t, withService)
	s.onPower()
	s.setUpPlaintext()
	s.migrate()
	unix.Sync()
	s.uploadLast("last in the volume")
	s.failpoint = func(point string) error {
		if point == "after returned" {
			s.power.fail()
			return errPanic
		}
		return nil
	}
	if err := s.do("rollback", &watcher{}); err == nil {
		t.Fatal("went back without power")
	}
	s.failpoint = nil
	s.power.cut()
	s.comeUp("in the volume", true)
	s.requireBound()
	s.rollback()
	s.requireServing("went back")
	s.requirePlain()
}

// uploadLast leaves an upload in memory, but not what the service will want to find.
func (s *site) uploadLast(name string) {
	s.t.Helper()
	s.upload(name)
	want, err := os.Open(s.standIn().want())
	s.must(err)
	defer want.Close()
	s.must(want.Sync())
}
