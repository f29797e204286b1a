//go:build kernel

package volume

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"luksmediad/internal/transfer"
	"luksmediad/test/devmapper"
)

// faults 18 and 19: a disk below the volume that loses writes, reports errors, or stops answering ends a move without harm. The service
// runs on the files outside, whose copy proves nothing any more, and a move on a disk that works comes to its end.
func TestMigrateLosesWrites(t *testing.T) {
	s := newSite(t)
	works := s.connectDevice(64)
	sectors, loop := 64<<11, strings.Fields(works)[3]
	s = s.again(onDevice, withService)
	s.makePlaintext()
	s.openPlaintext()
	for _, fault := range []struct {
		step  Step
		table string
	}{
		{StepCopy, fmt.Sprintf("0 %d flakey %s 0 0 60 1 error_writes", sectors, loop)},
		{StepDelta, fmt.Sprintf("0 %d flakey %s 0 0 60 1 error_writes", sectors, loop)},
		{StepVerify, fmt.Sprintf("0 %d error", sectors)},
		{StepVerifyAll, fmt.Sprintf("0 %d error", sectors)},
	} {
		where := fmt.Sprintf("%s of %s", fault.step, strings.Fields(fault.table)[2])
		s.upload("before " + string(fault.step))
		_, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{before: func(step Step) {
			if step == fault.step {
				devmapper.Swap(t, deviceName, fault.table)
			}
		}})
		if !errors.Is(err, transfer.ErrSync) && !errors.Is(err, transfer.ErrWrite) && !errors.Is(err, transfer.ErrRead) {
			t.Errorf("%s: %v", where, err)
		}
		s.requireServing(where)
		devmapper.Swap(t, deviceName, works)
		s.close()
		s.open()
		s.requireServing(where + ", opened again")
	}
	s.migrate()
	s.requireServing("moved in")
	s.requireBound()
}

// faults 32 and 33: a disk that dies while the container on it grows leaves a container that opens, and the next growth comes to its end.
func TestGrowOnDyingDisk(t *testing.T) {
	for _, fatal := range []Step{StepAllocate, StepAttach, StepGrowFS} {
		t.Run(string(fatal), func(t *testing.T) {
			s := newSite(t)
			s.onPower()
			s.create()
			s.open()
			s.write(s.store+"/before", "before")
			s.shutDownWell()
			s.open()
			_, err := s.Grow(t.Context(), s.Sources(), GrowOptions{To: grownBytes}, &watcher{before: func(step Step) {
				if step == fatal {
					s.power.fail()
				}
			}})
			if err == nil {
				t.Fatal("grown on a dead disk")
			}
			s.power.cut()
			s.open()
			s.requireOpen()
			if _, err := s.grow(GrowOptions{To: grownBytes}); err != nil {
				t.Fatal(err)
			}
			s.requireSize(grownBytes)
			s.requireContent(s.store+"/before", "before")
		})
	}
}

// shutDownWell has everything on the disk.
func (s *site) shutDownWell() {
	s.t.Helper()
	s.close()
	s.run("sync")
}
