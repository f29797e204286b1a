package state

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type pin struct {
	UUID  string `json:"uuid"`
	Bytes int64  `json:"bytes"`
}

func write(t *testing.T, store Store, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(store.Dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSaveThenLoad(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	store := Store{Dir: filepath.Join(t.TempDir(), "luksmediad")}
	for _, want := range []pin{{"one", 1}, {"two", 2}} {
		if err := store.Save("synapse-media.pin", 3, want); err != nil {
			t.Fatal(err)
		}
		var got pin
		if err := store.Load("synapse-media.pin", 3, &got); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	modes := map[string]fs.FileMode{".": 0o700, "synapse-media.pin.json": 0o600}
	for file, mode := range modes {
		info, err := os.Stat(filepath.Join(store.Dir, file))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want mode %o", file, info.Mode(), err, mode)
		}
	}
	entries, _ := os.ReadDir(store.Dir)
	if len(entries) != 1 {
		t.Errorf("temporary files are left: %v", entries)
	}
}

func TestFileFormat(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	if err := store.Save("pin", 1, pin{"abc", 7}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(store.Dir, "pin.json"))
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "version": 1,
  "data": {
    "uuid": "abc",
    "bytes": 7
  }
}
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestLoadRefuses(t *testing.T) {
	tests := []struct {
		name, content string
		want          error
	}{
		{"newer", `{"version":3,"data":{"uuid":"a"}}`, ErrNewer}, // fault 76
		{"newer, of another shape", `{"version":3,"payload":[1]}`, ErrNewer},
		{"older", `{"version":1,"data":{"uuid":"a"}}`, ErrOlder},
		{"no version", `{"data":{"uuid":"a"}}`, ErrCorrupt},
		{"negative version", `{"version":-2,"data":{}}`, ErrCorrupt},
		{"no data", `{"version":2}`, ErrCorrupt},
		{"unknown field", `{"version":2,"data":{"uuid":"a","pcrs":[7]}}`, ErrCorrupt},
		{"unknown field outside", `{"version":2,"data":{"uuid":"a"},"extra":1}`, ErrCorrupt},
		{"wrong type", `{"version":2,"data":{"uuid":7}}`, ErrCorrupt},
		{"truncated", `{"version":2,"data":{"uuid":"a"`, ErrCorrupt},
		{"two documents", `{"version":2,"data":{}}{"version":2,"data":{}}`, ErrCorrupt},
		{"empty", ``, ErrCorrupt},
		{"zeros", strings.Repeat("\x00", 64), ErrCorrupt},
		{"too large", `{"version":2,"data":{}}` + strings.Repeat(" ", maxSize), ErrCorrupt},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := Store{Dir: t.TempDir()}
			write(t, store, "pin.json", test.content)
			var got pin
			if err := store.Load("pin", 2, &got); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestAbsentState(t *testing.T) {
	store := Store{Dir: filepath.Join(t.TempDir(), "luksmediad")}
	for range 2 { // first without the directory, then with it
		if err := store.Load("pin", 1, new(pin)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load: %v", err)
		}
		if err := store.Remove("pin"); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if err := store.Save("other", 1, pin{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRemove(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	if err := store.Save("pin", 1, pin{}); err != nil {
		t.Fatal(err)
	}
	if err := store.Remove("pin"); err != nil {
		t.Fatal(err)
	}
	if err := store.Load("pin", 1, new(pin)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestNamesStayInTheDirectory(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	for _, name := range []string{"", ".", "..", "../pin", "a/b", "/etc/passwd", ".hidden", "Pin", "a b", "a\n", strings.Repeat("a", 129)} {
		if err := store.Save(name, 1, pin{}); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}

func TestFilesThatAreNotOurs(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	write(t, store, "real.json", `{"version":1,"data":{}}`)
	if err := os.Symlink("real.json", filepath.Join(store.Dir, "link.json")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(store.Dir, "fifo.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(store.Dir, "dir.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "fifo", "dir"} {
		if err := store.Load(name, 1, new(pin)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWritableByOthers(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	write(t, store, "pin.json", `{"version":1,"data":{}}`)
	chmod := func(path string, mode fs.FileMode) {
		if err := os.Chmod(filepath.Join(store.Dir, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod("pin.json", 0o620)
	if err := store.Load("pin", 1, new(pin)); !errors.Is(err, ErrUnsafe) {
		t.Errorf("file: %v", err)
	}
	chmod("pin.json", 0o600)
	chmod(".", 0o777)
	if err := store.Load("pin", 1, new(pin)); !errors.Is(err, ErrUnsafe) {
		t.Errorf("directory: %v", err)
	}
	if err := store.Save("pin", 1, pin{}); !errors.Is(err, ErrUnsafe) {
		t.Errorf("directory on Save: %v", err)
	}
}

func TestUnwritableStateKeepsTheOld(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	if err := store.Save("pin", 1, pin{UUID: "old"}); err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{make(chan int), strings.Repeat("x", maxSize)} {
		if err := store.Save("pin", 1, v); err == nil {
			t.Errorf("%T was saved", v)
		}
	}
	var got pin
	if err := store.Load("pin", 1, &got); err != nil || got.UUID != "old" {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A writer killed at any moment leaves a whole state: the old or the new.
func TestKilledWriter(t *testing.T) {
	store := Store{Dir: t.TempDir()}
	if err := store.Save("pin", 1, pinOf('a')); err != nil {
		t.Fatal(err)
	}
	for round := range 20 {
		writer := child(t, "save", store.Dir)
		time.Sleep(time.Duration(round) * time.Millisecond)
		stop(t, writer)
		var got pin
		if err := store.Load("pin", 1, &got); err != nil {
			t.Fatal(err)
		}
		if got != pinOf('a') && got != pinOf('b') {
			t.Fatalf("torn state: %.40q…", got.UUID)
		}
	}
}

func pinOf(letter byte) pin { return pin{UUID: strings.Repeat(string(letter), 200_000)} }

// child runs this test binary again as another process (see TestMain) and returns once that has said it is ready.
func child(t *testing.T, role, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "LUKSMEDIAD_TEST_ROLE="+role, "LUKSMEDIAD_TEST_PATH="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("%s: %v", role, err)
	}
	return cmd
}

func stop(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

func TestMain(m *testing.M) {
	path := os.Getenv("LUKSMEDIAD_TEST_PATH")
	switch os.Getenv("LUKSMEDIAD_TEST_ROLE") {
	case "save":
		os.Stdout.WriteString(".")
		for letter := byte(0); ; letter ^= 1 {
			if err := (Store{Dir: path}).Save("pin", 1, pinOf('a'+letter)); err != nil {
				panic(err)
			}
		}
	case "lock":
		if _, err := Lock(path); err != nil {
			panic(err)
		}
		os.Stdout.WriteString(".")
		time.Sleep(time.Hour) // until killed
	}
	os.Exit(m.Run())
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"data":{"uuid":"a","bytes":1}}`))
	f.Add([]byte(`{"version":2,"data":null}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, content []byte) {
		var first, second pin
		if decode(content, 1, &first) != nil {
			return
		}
		again, err := encode(1, first)
		if err != nil {
			t.Fatal(err)
		}
		if err := decode(again, 1, &second); err != nil || first != second {
			t.Errorf("%+v became %+v, %v", first, second, err)
		}
	})
}
