package transfer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// mutation changes one entry, and nothing else that would give it away.
type mutation struct {
	path   string
	fault  Fault
	mutate func(t *testing.T, path string)
}

func mutations() []mutation {
	remove := func(t *testing.T, path string) { check(t, os.Remove(path)) }
	return []mutation{
		{"-rf", FaultMode, func(t *testing.T, path string) { check(t, os.Chmod(path, 0o640)) }},
		{"a/b", FaultModified, touch},
		{"a/big", FaultContent, flip(3<<20 + 16)},
		{"a/extra", FaultExtra, func(t *testing.T, path string) { check(t, os.WriteFile(path, nil, 0o600)) }},
		{"a!b", FaultContent, flip(5)},
		{"attributes/file", FaultXattrs, setXattr},
		{"attributes/folder", FaultXattrs, func(t *testing.T, path string) { program(t, "setfacl", "--remove-default", path) }},
		{"attributes/folder/inherits", FaultXattrs, setXattr},
		{"attributes/folder/deeper", FaultModified, touch},
		{"dangling", FaultMissing, remove},
		{"empty", FaultMissing, remove},
		{"empty folder", FaultMode, func(t *testing.T, path string) { check(t, os.Chmod(path, 0o755)) }},
		{"empty folder/below", FaultMissing, remove},
		{"hole only", FaultContent, flip(1 << 20)},
		{"links/symbolic", FaultModified, touch},
		{"loop", FaultTarget, func(t *testing.T, path string) {
			remove(t, path)
			check(t, os.Symlink("..", path))
		}},
		{"outside", FaultKind, func(t *testing.T, path string) {
			remove(t, path)
			check(t, os.WriteFile(path, nil, 0o777))
		}},
		{"plain", FaultLinks, func(t *testing.T, path string) {
			remove(t, path)
			program(t, "cp", "--preserve=all", filepath.Join(filepath.Dir(path), "links/second"), path)
		}},
		{"space \u00e9 \u202e/* ?[a]", FaultSize, func(t *testing.T, path string) { check(t, os.Truncate(path, 3)) }},
		{"tail", FaultSize, func(t *testing.T, path string) { check(t, os.Truncate(path, 4<<20+1)) }},
	}
}

// flip changes one bit.
func flip(at int64) func(t *testing.T, path string) {
	return func(t *testing.T, path string) {
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

func setXattr(t *testing.T, path string) {
	check(t, unix.Setxattr(path, "user.comment", []byte("another"), 0))
}

// touch is put back by keepTimes, and so is done afterwards.
func touch(*testing.T, string) {}

// touchNow moves the time of modification by a nanosecond.
func touchNow(t *testing.T, path string) {
	var stat unix.Stat_t
	check(t, unix.Lstat(path, &stat))
	stat.Mtim.Nsec ^= 1
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{stat.Atim, stat.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
}

// fault 19, and every other difference there can be.
func TestVerifyFindsEveryDifference(t *testing.T) {
	m := newMove(t)
	m.hostile()
	manifest := m.copy()
	var want []Difference
	for _, mutation := range mutations() {
		path := filepath.Join(m.to, mutation.path)
		keepTimes(t, path, func() { mutation.mutate(t, path) })
		if mutation.fault == FaultModified {
			touchNow(t, path)
		}
		want = append(want, Difference{mutation.path, mutation.fault})
	}
	_, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options})
	mismatch, ok := errors.AsType[*Mismatch](err)
	if !ok {
		t.Fatalf("error %v", err)
	}
	for _, differences := range [][]Difference{mismatch.Differences, want} {
		slices.SortFunc(differences, func(a, b Difference) int { return comparePaths(a.Path, b.Path) })
	}
	requireFaults(t, mismatch, want...)
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
	time.Sleep(2 * clockTick)
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
	// Another process knows only what the manifests say, and nothing of the target.
	reopened, err := Open(filepath.Join(m.options.State, "manifest"))
	check(t, err)
	defer reopened.Close()
	proof, err = Verify(context.Background(), m.to, after, VerifyOptions{Options: m.options, Verified: reopened})
	check(t, err)
	if want := m.verify(after).Read; !maps.Equal(proof.Read, want) {
		t.Errorf("read %v, want %v", proof.Read, want)
	}
}

// What was touched since the first verification is looked at like everything else.
func TestVerifyFindsWhatWasTouchedSince(t *testing.T) {
	for _, mutation := range mutations() {
		t.Run(string(mutation.fault)+" of "+mutation.path, func(t *testing.T) {
			m := newMove(t)
			m.depth = 1
			m.hostile()
			manifest := m.copy()
			time.Sleep(2 * clockTick)
			m.verify(manifest)
			path := filepath.Join(m.to, mutation.path)
			keepTimes(t, path, func() { mutation.mutate(t, path) })
			if mutation.fault == FaultModified {
				touchNow(t, path)
			}
			_, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options, Verified: manifest})
			requireFaults(t, err, Difference{mutation.path, mutation.fault})
		})
	}
}

// What a copy was not sure of is made anew by the delta. Where the clock was set back in between, that is older than the first verification.
func TestVerifyReadsWhatWasUnsettled(t *testing.T) {
	m := newMove(t)
	m.file("young", "one")
	before := m.copy()
	m.verify(before)
	before.verified = Time{Seconds: before.verified.Seconds + 3600, Nanoseconds: 1}
	after := m.delta(before)
	path := filepath.Join(m.to, "young")
	keepTimes(t, path, func() { flip(1)(t, path) })
	_, err := Verify(context.Background(), m.to, after, VerifyOptions{Options: m.options, Verified: before})
	requireFaults(t, err, Difference{"young", FaultContent})
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

// A file without a block is read by itself, whatever lies near the beginning of the device.
func TestFilesAreGroupedByBlock(t *testing.T) {
	file := func(block uint64, size int64) Entry {
		return Entry{Kind: File, Size: size, scanned: &scanned{block: block}}
	}
	files := []Entry{
		file(0, 10), file(0, 2<<20), file(4096, 100), file(8192, 5000), // at the beginning of the device
		file(16384+maxGap+4096, 1), file(1<<30+512, 700), file(1<<30+4096+maxGap, 1),
	}
	for i := range uint64(31) {
		files = append(files, file(2<<30+i*204800, 102400))
	}
	spans := make(chan span, len(files))
	check(t, groupFiles(context.Background(), pointers(files), spans))
	close(spans)
	var got []string
	for s := range spans {
		got = append(got, fmt.Sprintf("%d+%d:%d", s.at, s.bytes, len(s.files)))
	}
	want := []string{"0+4096:1", "0+2097152:1", "4096+12288:2", "282624+4096:1", "1073741824+270336:2", "2147483648+3993600:20", "2151579648+2150400:11"}
	if !slices.Equal(got, want) {
		t.Errorf("spans %q, want %q", got, want)
	}
}
