package transfer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keepTimes puts the times of an entry and of its folder back after change.
func keepTimes(t *testing.T, path string, change func()) {
	t.Helper()
	restore := func(path string) func() {
		var stat unix.Stat_t
		check(t, unix.Lstat(path, &stat))
		return func() {
			err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{stat.Atim, stat.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
			if !errors.Is(err, unix.ENOENT) {
				check(t, err)
			}
		}
	}
	defer restore(filepath.Dir(path))()
	if _, err := os.Lstat(path); err == nil {
		defer restore(path)()
	}
	change()
}

// fault 19, and every other difference there can be, each with nothing else that would give it away.
func TestVerifyFindsEveryDifference(t *testing.T) {
	flip := func(path string, at int64) func(t *testing.T) {
		return func(t *testing.T) {
			file, err := os.OpenFile(path, os.O_RDWR, 0)
			check(t, err)
			defer file.Close()
			b := make([]byte, 1)
			_, err = file.ReadAt(b, at)
			check(t, err)
			_, err = file.WriteAt([]byte{b[0] ^ 1}, at)
			check(t, err)
		}
	}
	m := newMove(t)
	m.hostile()
	manifest := m.copy()
	in := func(path string) string { return filepath.Join(m.to, path) }
	for _, mutation := range []struct {
		path   string
		fault  Fault
		mutate func(t *testing.T)
	}{
		{"a!b", FaultContent, flip(in("a!b"), 5)},
		{"a/big", FaultContent, flip(in("big"), 3<<20+16)},
		{"hole only", FaultContent, flip(in("hole only"), 1<<20)},
		{"a!b", FaultSize, func(t *testing.T) { check(t, os.Truncate(in("a!b"), 3)) }},
		{"hole only", FaultSize, func(t *testing.T) { check(t, os.Truncate(in("hole only"), 2<<20+1)) }},
		{"-rf", FaultMode, func(t *testing.T) { check(t, os.Chmod(in("-rf"), 0o640)) }},
		{"empty folder", FaultMode, func(t *testing.T) { check(t, os.Chmod(in("empty folder"), 0o755)) }},
		{"attributes/file", FaultXattrs, func(t *testing.T) {
			check(t, unix.Setxattr(in("attributes/file"), "user.comment", []byte("another"), 0))
		}},
		{"attributes/folder", FaultXattrs, func(t *testing.T) { program(t, "setfacl", "--remove-default", in("attributes/folder")) }},
		{"a!b", FaultXattrs, func(t *testing.T) { check(t, unix.Setxattr(in("a!b"), "user.new", nil, 0)) }},
		{"loop", FaultTarget, func(t *testing.T) {
			check(t, os.Remove(in("loop")))
			check(t, os.Symlink("..", in("loop")))
		}},
		{"outside", FaultKind, func(t *testing.T) {
			check(t, os.Remove(in("outside")))
			check(t, os.WriteFile(in("outside"), nil, 0o777))
		}},
		{"plain", FaultLinks, func(t *testing.T) {
			check(t, os.Remove(in("plain")))
			program(t, "cp", "--preserve=all", in("links/second"), in("plain"))
		}},
		{"empty", FaultMissing, func(t *testing.T) { check(t, os.Remove(in("empty"))) }},
		{"dangling", FaultMissing, func(t *testing.T) { check(t, os.Remove(in("dangling"))) }},
		{"empty folder/below", FaultMissing, func(t *testing.T) { check(t, os.Remove(in("empty folder/below"))) }},
		{"a/extra", FaultExtra, func(t *testing.T) { check(t, os.WriteFile(in("a/extra"), nil, 0o600)) }},
	} {
		t.Run(string(mutation.fault)+" of "+mutation.path, func(t *testing.T) {
			path := in(mutation.path)
			saved := filepath.Join(m.dir, "saved")
			program(t, "cp", "--archive", m.to, saved)
			keepTimes(t, path, func() { mutation.mutate(t) })
			_, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options})
			requireFaults(t, err, Difference{mutation.path, mutation.fault})
			program(t, "rsync", "-aHAX", "--checksum", "--delete", "--modify-window=-1", saved+"/", m.to+"/")
			check(t, os.RemoveAll(saved))
		})
	}
	t.Run("modified", func(t *testing.T) {
		for _, path := range []string{"a!b", "a", "dangling", ""} {
			var stat unix.Stat_t
			check(t, unix.Lstat(in(path), &stat))
			later := stat.Mtim
			later.Nsec ^= 1
			check(t, unix.UtimesNanoAt(unix.AT_FDCWD, in(path), []unix.Timespec{stat.Atim, later}, unix.AT_SYMLINK_NOFOLLOW))
			_, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options})
			requireFaults(t, err, Difference{path, FaultModified})
			check(t, unix.UtimesNanoAt(unix.AT_FDCWD, in(path), []unix.Timespec{stat.Atim, stat.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
		}
	})
	m.verify(manifest)
}

// All differences are counted, though not all are named.
func TestVerifyCountsDifferences(t *testing.T) {
	m := newMove(t)
	for i := range 3 * maxDifferences {
		m.file(filepath.Join("many", string(rune('A'+i%50)), string(rune('A'+i/50))), "x")
	}
	manifest := m.copy()
	check(t, os.RemoveAll(filepath.Join(m.to, "many")))
	_, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options})
	mismatch, _ := errors.AsType[*Mismatch](err)
	if mismatch == nil || mismatch.Count < 3*maxDifferences || len(mismatch.Differences) != maxDifferences {
		t.Errorf("error %v", err)
	}
}

// A second verification reads only what is new since the first.
func TestVerifyReadsOnlyWhatIsNew(t *testing.T) {
	m := newMove(t)
	m.hostile()
	m.rest()
	before := m.copy()
	if proof := m.verify(before); proof.Read[MeansDirect]+proof.Read[MeansCache] < 10 || proof.DeviceRefused != nil {
		t.Errorf("%+v", proof)
	}
	m.options.State = filepath.Join(m.dir, "second state")
	check(t, os.Rename(filepath.Join(m.dir, "state"), m.options.State))
	m.file("came", "new")
	m.inPlace("-rf")
	time.Sleep(clockTick)
	after := m.delta(before)
	proof, err := Verify(context.Background(), m.to, after, VerifyOptions{Options: m.options, Verified: before})
	check(t, err)
	if read := proof.Read[MeansDirect] + proof.Read[MeansCache]; read != 2 {
		t.Errorf("%d files read", read)
	}
}

// A device that the target is not on is not used, and the proof says so.
func TestVerifyRefusesAnotherDevice(t *testing.T) {
	m := newMove(t)
	m.file("plain", "x")
	manifest := m.copy()
	proof, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options, Device: "/dev/null"})
	check(t, err)
	if proof.DeviceRefused == nil || proof.Read[MeansDevice] != 0 {
		t.Errorf("%+v", proof)
	}
}
