//go:build kernel

package volume

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/test/devmapper"
)

// syncCall is a call that was to make something durable.
type syncCall struct {
	path   string
	failed bool
}

var (
	syncBegun = regexp.MustCompile(`^(\d+) +(?:fsync|fdatasync|syncfs|sync_file_range)\(\d+<(.*?)>`)
	syncEnded = regexp.MustCompile(`^(\d+) .*\) += (-?\d+)`)
)

// traceSyncs has all such calls traced that this process and its programs do meanwhile.
func traceSyncs(t *testing.T, do func()) (calls []syncCall) {
	t.Helper()
	output := filepath.Join(t.TempDir(), "trace")
	tracer := exec.Command("strace", "--follow-forks", "--attach", strconv.Itoa(os.Getpid()), "--decode-fds=path", "--output", output,
		"--trace=fsync,fdatasync,syncfs,sync_file_range", "--signal=none")
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); !allTraced(t); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("strace does not trace")
		}
	}
	do()
	if err := tracer.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = tracer.Wait() // interrupted
	return readSyncs(t, output)
}

func allTraced(t *testing.T) bool {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(threads) == 0 {
		t.Fatal(threads, err)
	}
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		if err == nil && regexp.MustCompile(`(?m)^TracerPid:\s+0$`).Match(status) {
			return false
		}
	}
	return true
}

// readSyncs gives the calls in the order of their ends.
func readSyncs(t *testing.T, output string) (calls []syncCall) {
	t.Helper()
	file, err := os.Open(output)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	paths := map[string]string{} // of what is under way, by thread
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if begun := syncBegun.FindStringSubmatch(lines.Text()); begun != nil {
			paths[begun[1]] = begun[2]
		}
		if ended := syncEnded.FindStringSubmatch(lines.Text()); ended != nil {
			calls = append(calls, syncCall{paths[ended[1]], ended[2] != "0"})
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return calls
}

// requireFatal wants a sync to have failed, and none to have been tried again.
func requireFatal(t *testing.T, calls []syncCall) {
	t.Helper()
	failed := map[string]bool{}
	for _, call := range calls {
		if failed[call.path] {
			t.Errorf("%s was synced again", call.path)
		}
		failed[call.path] = failed[call.path] || call.failed
	}
	if !slices.Contains(slices.Collect(maps.Values(failed)), true) {
		t.Errorf("no sync has failed: %v", calls)
	}
}

// fault 18: a sync that fails ends whatever wanted it and is not tried again. When the disk works, the next one comes to its end.
func TestFailedSyncIsFatal(t *testing.T) {
	s := newSite(t, withService)
	s.onPower()
	s.setUpPlaintext()
	unix.Sync() // what it is made of has been on the disk for a while
	files, state := s.power.disks[0], s.power.disks[1]
	for _, fault := range []struct {
		what string
		step Step
		disk *powered
	}{
		{"migrate", StepDelta, files},
		{"rollback", StepCarryBack, files},
		{"migrate", StepSwap, state},
		{"purge", StepPurge, files},
		{"grow", StepAllocate, files},
	} {
		where := fmt.Sprintf("%s, and %s fails in step %s", fault.what, fault.disk.name, fault.step)
		s.uploadDurably(where)
		var err error
		calls := traceSyncs(t, func() {
			err = s.do(fault.what, &watcher{before: func(step Step) {
				if step == fault.step {
					devmapper.Swap(t, fault.disk.name, fmt.Sprintf("0 %d flakey %s 0 0 60 1 error_writes", fault.disk.sectors(), fault.disk.lower))
				}
			}})
		})
		if err == nil {
			t.Errorf("%s: no error", where)
		}
		requireFatal(t, calls)
		s.power.fail()
		s.power.cut()
		s.comeUp(where, s.startsAtBoot())
		s.finish(fault.what)
		s.requireServing(where + ", and once more")
	}
}
