package luks2

import (
	"bytes"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCopies(t *testing.T) {
	path := container(t)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	addSlot(t, path)
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, after := mustRead(t, old).SequenceID, mustRead(t, now).SequenceID
	if before >= after {
		t.Fatalf("sequence %d, then %d", before, after)
	}
	size := minHeaderBytes
	first, second := Copy{Primary, 0, after}, Copy{Secondary, int64(size), after}
	none := make([]byte, size)
	for name, test := range map[string]struct {
		primary, secondary []byte
		want               []Copy
	}{
		"both":            {now[:size], now[size : 2*size], []Copy{first, second}},
		"primary only":    {now[:size], none, []Copy{first}},
		"secondary only":  {none, now[size : 2*size], []Copy{second}},
		"none":            {none, none, nil},
		"secondary stale": {now[:size], old[size : 2*size], []Copy{first, {Secondary, int64(size), before}}},
	} {
		content := bytes.Join([][]byte{test.primary, test.secondary, now[2*size:]}, nil)
		if diff := cmp.Diff(test.want, Copies(bytes.NewReader(content), int64(len(content)))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func mustRead(t *testing.T, content []byte) *Header {
	t.Helper()
	h, err := Read(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	return h
}
