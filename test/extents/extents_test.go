package extents

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const size = 5 << 20

// written is a file that is allocated and has something at the given places.
func written(t *testing.T, content map[int64]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Fallocate(int(file.Fd()), 0, 0, size); err != nil {
		t.Fatal(err)
	}
	for at, text := range content {
		if _, err := file.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	digest, err := Sum(path)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func TestSum(t *testing.T) {
	content := map[int64]string{5: "a", 3<<20 - 1: "bc", size - 1: "d"}
	same := written(t, content)
	want := sum(t, same)
	if got := sum(t, written(t, map[int64]string{5: "a", 1 << 20: "\x00", 3<<20 - 1: "bc", size - 1: "d"})); got != want {
		t.Error("zeros that were written make a difference")
	}
	for name, other := range map[string]map[int64]string{
		"elsewhere": {6: "a", 3<<20 - 1: "bc", size - 1: "d"},
		"less":      {5: "a", 3<<20 - 1: "bc"},
		"other":     {5: "a", 3<<20 - 1: "bd", size - 1: "d"},
		"a block":   {5 + blockBytes: "a", 3<<20 - 1: "bc", size - 1: "d"},
	} {
		if sum(t, written(t, other)) == want {
			t.Errorf("%s: no difference", name)
		}
	}
	if err := os.Truncate(same, size+1); err != nil {
		t.Fatal(err)
	}
	if sum(t, same) == want {
		t.Error("longer: no difference")
	}
}

func TestIndex(t *testing.T) {
	for _, at := range []int64{0, 4095, 1<<20 - 3, 2 << 20, size - 6} {
		if found, err := Index(written(t, map[int64]string{at: "needle", 1 << 20: "nee"}), []byte("needle")); err != nil || found != at && at != 1<<20-3 {
			t.Errorf("at %d: found %d, %v", at, found, err)
		}
		if found, err := Index(written(t, map[int64]string{at: "needle"}), []byte("needle")); err != nil || found != at {
			t.Errorf("alone at %d: found %d, %v", at, found, err)
		}
	}
	if found, err := Index(written(t, map[int64]string{5: "need", 1 << 20: "le"}), []byte("needle")); err != nil || found >= 0 {
		t.Errorf("found %d, %v", found, err)
	}
}

func TestCopy(t *testing.T) {
	from := written(t, map[int64]string{5: "a", 3<<20 - 1: "bc", size - 1: "d"})
	to := from + ".copy"
	if err := Copy(from, to); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(from)
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(to, &stat); err != nil || stat.Blocks*512 < size {
		t.Errorf("%d blocks, %v", stat.Blocks, err)
	}
	if err := Copy(from, to); err == nil {
		t.Error("written over")
	}
}
