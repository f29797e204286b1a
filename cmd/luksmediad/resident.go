package main

import (
	"context"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// firstRound is how long the probes take, as a rule, that follow the first opening.
const firstRound = 500 * time.Millisecond

// shrink gives back what starting and the first opening have taken, once: a daemon that waits for most of the time needs a quarter of it. A second
// opening is rare.
func (s *service) shrink(ctx context.Context) {
	select {
	case <-s.daemon.Settled():
	case <-ctx.Done():
		return
	}
	select {
	case <-time.After(firstRound):
	case <-ctx.Done():
		return
	}
	debug.FreeOSMemory()
	_ = unmapProgram() // what is not given back does no harm
}

// unmapProgram has the kernel forget which pages of the program were used: it maps sixteen of them for each that is (fault_around_bytes of
// mm/memory.c), and takes first what nobody has mapped. They stay in the page cache as long as there is room; those that are needed again are
// mapped again, without reading. MADV_DONTNEED of madvise(2).
//
// Only what cannot be written to is the file's, and that only where no dynamic linker has changed it before (RELRO).
func unmapProgram() error {
	if !isStatic() {
		return nil
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	self, err := procfs.Self()
	if err != nil {
		return err
	}
	maps, err := self.ProcMaps()
	if err != nil {
		return err
	}
	for _, m := range maps {
		if m.Pathname != program || m.Perms.Write {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.StartAddr, m.EndAddr-m.StartAddr, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
	}
	return nil
}

func isStatic() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-buildmode", Value: "exe"}) &&
		slices.Contains(info.Settings, debug.BuildSetting{Key: "CGO_ENABLED", Value: "0"})
}
