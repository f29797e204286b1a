package unlock

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"luksmediad/internal/command"
)

// ringOfKeys is a container with a key in each of the keyslots 1, 2 and 5; keyslots 1 and 5 have the same one.
func ringOfKeys(t *testing.T) (Cryptsetup, Question) {
	t.Helper()
	cryptsetup := Cryptsetup{Runner: command.Runner{}}
	path := newContainer(t, cryptsetup)
	addKey(t, cryptsetup, path, "first", 1)
	addKey(t, cryptsetup, path, "second", 2)
	addKey(t, cryptsetup, path, "first", 5)
	return cryptsetup, Question{Container: path, Header: readHeader(t, path)}
}

func passphrases(t *testing.T, texts ...string) []Source {
	t.Helper()
	var sources []Source
	for _, text := range texts {
		sources = append(sources, Passphrase{Key: newKey(t, text)})
	}
	return sources
}

// The first key that opens a keyslot is enough; what it opens is handed over after its source has wiped it.
func TestFind(t *testing.T) {
	cryptsetup, about := ringOfKeys(t)
	before := fileSum(t, about.Container)
	way, failed, err := Opener{Cryptsetup: cryptsetup, Sources: passphrases(t, "wrong", "second", "first")}.Find(t.Context(), about)
	if err != nil {
		t.Fatal(err)
	}
	defer way.Key.Wipe()
	if string(way.Key.Bytes()) != "second" || !slices.Equal(way.Keyslots, []int{2}) || way.Source != "passphrase" {
		t.Errorf("keyslots %v by %s", way.Keyslots, way.Source)
	}
	if len(failed) != 1 || !errors.Is(failed[0], ErrWrongKey) {
		t.Errorf("failed %v", failed)
	}
	requireUnchanged(t, about.Container, before)
}

func TestFindExcept(t *testing.T) {
	cryptsetup, about := ringOfKeys(t)
	about.Except = []int{2}
	opener := Opener{Cryptsetup: cryptsetup, Sources: passphrases(t, "second")}
	if _, _, err := opener.Find(t.Context(), about); !errors.Is(err, ErrNoKeyFits) {
		t.Error(err)
	}
}

// Every key on every keyslot.
func TestWays(t *testing.T) {
	cryptsetup, about := ringOfKeys(t)
	ways, failed, err := Opener{Cryptsetup: cryptsetup, Sources: passphrases(t, "second", "wrong", "first")}.Ways(t.Context(), about)
	if err != nil {
		t.Fatal(err)
	}
	defer WipeWays(ways)
	var keyslots [][]int
	for _, way := range ways {
		keyslots = append(keyslots, way.Keyslots)
	}
	if len(keyslots) != 2 || !slices.Equal(keyslots[0], []int{2}) || !slices.Equal(keyslots[1], []int{1, 5}) || len(failed) != 1 {
		t.Errorf("keyslots %v, failed %v", keyslots, failed)
	}
}

// What no other key would mend is not blamed on the keys.
func TestWaysEnd(t *testing.T) {
	_, about := ringOfKeys(t)
	broken := Opener{Cryptsetup: Cryptsetup{Runner: absent{}}, Sources: passphrases(t, "first", "second")}
	if _, failed, err := broken.Ways(t.Context(), about); !errors.Is(err, ErrCryptsetup) || errors.Is(err, ErrNoKeyFits) || len(failed) != 0 {
		t.Errorf("%v, failed %v", err, failed)
	}
}

func TestRemoveToken(t *testing.T) {
	cryptsetup, about := ringOfKeys(t)
	importToken(t, cryptsetup, about.Container, `{"type":"one","keyslots":["1"]}`)
	importToken(t, cryptsetup, about.Container, `{"type":"two","keyslots":["2"]}`)
	if err := cryptsetup.RemoveToken(t.Context(), about.Container, 0); err != nil {
		t.Fatal(err)
	}
	tokens := readHeader(t, about.Container).Metadata.Tokens
	if len(tokens) != 1 || tokens[1].Type != "two" {
		t.Errorf("tokens %v", tokens)
	}
	if err := cryptsetup.RemoveToken(t.Context(), about.Container, 0); !errors.Is(err, ErrCryptsetup) {
		t.Error(err)
	}
}

// absent finds no program.
type absent struct{}

func (absent) Run(context.Context, *os.File, []*os.File, string, ...string) ([]byte, error) {
	return nil, command.ErrNotFound
}
