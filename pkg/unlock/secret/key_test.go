package secret

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// key returns a key with the bytes of s, wiped at the end of the test.
func key(t *testing.T, s string) *Key {
	t.Helper()
	k, err := From([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Wipe)
	return k
}

func TestNewLimits(t *testing.T) {
	for _, test := range []struct {
		size int
		want error
	}{{-1, ErrEmpty}, {0, ErrEmpty}, {1, nil}, {MaxSize, nil}, {MaxSize + 1, ErrTooLarge}} {
		k, err := New(test.size)
		if !errors.Is(err, test.want) {
			t.Errorf("New(%d): error %v, want %v", test.size, err, test.want)
		}
		if err == nil && (k.Len() != test.size || !bytes.Equal(k.Bytes(), make([]byte, test.size))) {
			t.Errorf("New(%d): %d bytes, or not zero", test.size, k.Len())
		}
		k.Wipe()
	}
}

func TestRandomDiffers(t *testing.T) {
	a, err := Random(32)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Wipe()
	b, err := Random(32)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Wipe()
	if a.Len() != 32 || bytes.Equal(a.Bytes(), b.Bytes()) || bytes.Equal(a.Bytes(), make([]byte, 32)) {
		t.Error("two random keys are equal, or zero")
	}
}

func TestFromClearsItsArgument(t *testing.T) {
	b := []byte("correct horse")
	k, err := From(b)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Wipe()
	if string(k.Bytes()) != "correct horse" {
		t.Error("the key is not a copy of the argument")
	}
	if !bytes.Equal(b, make([]byte, len(b))) {
		t.Error("the argument was not cleared")
	}

	big := bytes.Repeat([]byte{1}, MaxSize+1)
	if _, err := From(big); !errors.Is(err, ErrTooLarge) {
		t.Errorf("error %v, want %v", err, ErrTooLarge)
	}
	if !bytes.Equal(big, make([]byte, len(big))) {
		t.Error("the argument was not cleared on failure")
	}
}

func TestRead(t *testing.T) {
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		reader io.Reader
		limit  int
		want   string
		err    error
	}{
		"short":             {strings.NewReader("abc"), 8, "abc", nil},
		"exactly the limit": {strings.NewReader("abcdefgh"), 8, "abcdefgh", nil},
		"newlines kept":     {strings.NewReader("a\nb\n"), 8, "a\nb\n", nil},
		"byte by byte":      {iotest.OneByteReader(strings.NewReader("abcdefgh")), 8, "abcdefgh", nil},
		"one too many":      {strings.NewReader("abcdefghi"), 8, "", ErrTooLarge},
		"endless":           {neverEnds{}, 1 << 30, "", ErrTooLarge}, // fault 49
		"empty":             {strings.NewReader(""), 8, "", ErrEmpty},
		"no limit":          {strings.NewReader("a"), 0, "", ErrTooLarge},
		"failing":           {io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)), 8, "", broken},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := Read(test.reader, test.limit)
			defer k.Wipe()
			if !errors.Is(err, test.err) || (test.err == nil) != (err == nil) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if string(k.Bytes()) != test.want {
				t.Errorf("read %q, want %q", k.Bytes(), test.want)
			}
		})
	}
}

type neverEnds struct{}

func (neverEnds) Read(b []byte) (int, error) { return len(b), nil }

// read(2) must accept the locked page as its destination.
func TestReadFromFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	want := bytes.Repeat([]byte("0123456789abcdef"), MaxSize/16)
	if err := os.WriteFile(path, want, 0o400); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	k, err := Read(f, MaxSize)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Wipe()
	if !bytes.Equal(k.Bytes(), want) {
		t.Error("the key differs from the file")
	}
}

func TestBase64(t *testing.T) {
	k := key(t, string(make([]byte, 30))+"\xff\xfe")
	encoded, err := k.Base64()
	if err != nil {
		t.Fatal(err)
	}
	defer encoded.Wipe()
	if want := strings.Repeat("A", 40) + "//4="; string(encoded.Bytes()) != want {
		t.Errorf("base64 is %q, want %q", encoded.Bytes(), want)
	}
}

// A copy outlives what it was copied from.
func TestCopy(t *testing.T) {
	k := key(t, "first\nsecond")
	twin, err := k.Copy()
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Wipe()
	k.Wipe()
	if string(twin.Bytes()) != "first\nsecond" {
		t.Errorf("the copy is %q", twin.Bytes())
	}
	if _, err := k.Copy(); !errors.Is(err, ErrEmpty) {
		t.Errorf("a copy of a wiped key: %v", err)
	}
}

func TestTrimNewline(t *testing.T) {
	for give, want := range map[string]string{
		"abc": "abc", "abc\n": "abc", "abc\n\n": "abc\n", "\nabc": "\nabc", "abc\r\n": "abc\r", "\n": "",
	} {
		k := key(t, give)
		k.TrimNewline()
		if string(k.Bytes()) != want {
			t.Errorf("%q became %q, want %q", give, k.Bytes(), want)
		}
	}
}

func TestWipeIsSafe(t *testing.T) {
	var none *Key
	none.Wipe()
	none.TrimNewline()
	new(Key).Wipe()
	if none.Len() != 0 || none.Bytes() != nil {
		t.Error("a nil key has bytes")
	}

	k := key(t, "abc")
	alias := *k
	k.Wipe()
	k.Wipe()
	k.TrimNewline()
	if k.Len() != 0 || k.Bytes() != nil || alias.Len() != 0 {
		t.Error("a wiped key has bytes")
	}
	if _, err := k.Pipe(); !errors.Is(err, ErrEmpty) {
		t.Errorf("a pipe of a wiped key: error %v, want %v", err, ErrEmpty)
	}
	if _, err := k.Base64(); !errors.Is(err, ErrEmpty) {
		t.Errorf("base64 of a wiped key: error %v, want %v", err, ErrEmpty)
	}
}
