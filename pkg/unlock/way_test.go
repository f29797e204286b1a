package unlock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"luksmediad/internal/command"
)

// ringOfKeys is a container with a key in each of the keyslots 1, 2 and 5; keyslots 1 and 5 have the same one.
func ringOfKeys(t *testing.T) (Cryptsetup, ProofRequest) {
	t.Helper()
	cryptsetup := Cryptsetup{Runner: command.Runner{}}
	path := newContainer(t, cryptsetup)
	addKey(t, cryptsetup, path, "first", 1)
	addKey(t, cryptsetup, path, "second", 2)
	addKey(t, cryptsetup, path, "first", 5)
	return cryptsetup, ProofRequest{Container: path, Header: readHeader(t, path)}
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
	busy := scripted(func(string) string { return "exit 5" })
	for class, runner := range map[error]Runner{ErrCryptsetup: absent{}, ErrMappingBusy: busy} {
		broken := Opener{Cryptsetup: Cryptsetup{Runner: runner}, Sources: passphrases(t, "first", "second")}
		if _, failed, err := broken.Ways(t.Context(), about); !errors.Is(err, class) || errors.Is(err, ErrNoKeyFits) || len(failed) != 0 {
			t.Errorf("%v, failed %v", err, failed)
		}
	}
}

// fault 11: a keyslot that asks for more memory than there is keeps nobody from the next one, and no source from being asked.
func TestKeyslotWithoutMemory(t *testing.T) {
	cryptsetup, about := ringOfKeys(t)
	key := filepath.Join(t.TempDir(), "key")
	writeFile(t, key, "first", 0o400)
	_, err := command.Runner{}.Run(t.Context(), nil, nil, "cryptsetup", "luksAddKey", "--batch-mode", "--key-file", key, "--key-slot", "7",
		"--pbkdf=argon2id", "--pbkdf-memory=262144", "--pbkdf-parallel=1", "--pbkdf-force-iterations=4", about.Container, key)
	if err != nil {
		t.Fatal(err)
	}
	about.Header = readHeader(t, about.Container)
	cryptsetup.Runner = limited{}
	way, failed, err := Opener{Cryptsetup: cryptsetup, Sources: passphrases(t, "wrong", "second")}.Find(t.Context(), about)
	if err != nil || !slices.Equal(way.Keyslots, []int{2}) || len(failed) != 1 || !errors.Is(failed[0], ErrKeyslotMemory) {
		t.Fatalf("%+v, failed %v, %v", way, failed, err)
	}
	way.Key.Wipe()
}

// limited runs programs with little memory.
type limited struct{ command.Runner }

func (l limited) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	return l.Runner.Run(ctx, stdin, extra, "prlimit", append([]string{"--as=150000000", name}, args...)...)
}

// fault 11: also where the kernel kills cryptsetup, and where a mapping is to be made.
func TestActivateWithoutMemory(t *testing.T) {
	_, about := ringOfKeys(t)
	for _, end := range []string{"exit 3", "kill -KILL $$"} {
		var tried []string
		opener := Opener{Cryptsetup: Cryptsetup{Runner: scripted(func(keyslot string) string {
			tried = append(tried, keyslot)
			return map[string]string{"1": "exit 2", "2": end, "5": "exit 2"}[keyslot]
		})}}
		_, err := opener.activate(t.Context(), Target{Device: about.Container, Header: about.Header},
			Offer{Key: newKey(t, "key"), Keyslots: []int{1, 2, 5}})
		if !errors.Is(err, ErrKeyslotMemory) || !anotherKeyMayFit(err) || len(tried) != 3 {
			t.Errorf("%s: tried %v, %v", end, tried, err)
		}
	}
}

// scripted runs a shell script in place of cryptsetup.
type scripted func(keyslot string) string

func (s scripted) Run(ctx context.Context, _ *os.File, _ []*os.File, _ string, args ...string) ([]byte, error) {
	return command.Runner{}.Run(ctx, nil, nil, "sh", "-c", s(args[slices.Index(args, "--key-slot")+1]))
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
