package transfer

import (
	"runtime"
	"runtime/debug"
)

const (
	// garbagePercent collects later than Go would: with its 100, a third of the time of a scan goes into collections of a small heap.
	garbagePercent = 400
	// softMemory is what that may grow to in a store of any size.
	softMemory = 128 << 20
)

// OwnProcess is for a process that does nothing but a transfer.
//
// Workers need as many processors of the runtime as there are of them: a call that blocks keeps its processor from the other workers
// until the runtime's monitor looks, after 20 µs at the earliest (runtime/proc.go, retake).
func OwnProcess() {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), DefaultWorkers))
	debug.SetGCPercent(garbagePercent)
	debug.SetMemoryLimit(softMemory)
}
