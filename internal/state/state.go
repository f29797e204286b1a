// Package state keeps what luksmediad must remember: small JSON files, written whole, versioned, and read strictly.
//
// A file is replaced by writing a new one, fsync, rename and fsync of the directory, so that after a power cut there
// is either the old content or the new one. A file of a version that this program does not know is refused, never
// guessed.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"

	"github.com/google/renameio/v2"
)

var (
	// ErrNewer means that a newer luksmediad wrote the file.
	ErrNewer = errors.New("written by a newer version of luksmediad")
	// ErrOlder means that the file is of a version that its reader no longer takes.
	ErrOlder = errors.New("written by an older version of luksmediad")
	// ErrCorrupt means that the file is not what Save writes.
	ErrCorrupt = errors.New("state file is damaged")
	// ErrUnsafe means that others can change the directory or the file.
	ErrUnsafe = errors.New("can be changed by other users")
	// ErrNoSpace means that the disk of the directory has no blocks, inodes or quota left.
	ErrNoSpace = errors.New("no room left for the state")
)

const maxSize = 4 << 20 // bytes; the largest state is a few KiB

// Store is a directory of state files. It is made, with mode 0700, by the first Save.
type Store struct {
	Dir string
}

// envelope is the form of every file. Data stays raw until the version is known to be ours.
type envelope struct {
	Version int             `json:"version"`
	Data    json.RawMessage `json:"data"`
}

// Load reads the state called name into a pointer. The file's version must be the given one: the error wraps
// fs.ErrNotExist, ErrNewer, ErrOlder, ErrCorrupt or ErrUnsafe.
func (s Store) Load(name string, version int, into any) error {
	if err := s.load(name, version, into); err != nil {
		return fmt.Errorf("cannot read state %s in %s: %w", name, s.Dir, err)
	}
	return nil
}

// Save replaces the state called name. When it returns nil, the new content survives a power cut.
func (s Store) Save(name string, version int, v any) error {
	if err := s.save(name, version, v); err != nil {
		return fmt.Errorf("cannot write state %s in %s: %w", name, s.Dir, NoSpace(err))
	}
	return nil
}

// NoSpace makes an error that says so of a disk one of ErrNoSpace too.
func NoSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// Remove deletes the state called name durably. It is no error if there is none.
func (s Store) Remove(name string) error {
	if err := s.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove state %s in %s: %w", name, s.Dir, err)
	}
	return nil
}

func (s Store) load(name string, version int, into any) error {
	root, file, err := s.open(name)
	if err != nil {
		return err
	}
	defer root.Close()
	content, err := read(root, file)
	if err != nil {
		return err
	}
	return decode(content, version, into)
}

func (s Store) save(name string, version int, v any) error {
	content, err := encode(version, v)
	if err != nil {
		return err
	}
	if err := makeDir(s.Dir); err != nil {
		return err
	}
	root, file, err := s.open(name)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := replace(root, file, content); err != nil {
		return err
	}
	return syncDir(root)
}

func (s Store) remove(name string) error {
	root, file, err := s.open(name)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Remove(file); err != nil {
		return err
	}
	return syncDir(root)
}

// makeDir makes a directory durably, if it is not there.
func makeDir(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	parent, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(syncDir(parent), parent.Close())
}

// nameForm is what the name of a state may consist of; a bound there would take a program that is as long to match it.
var nameForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`) })

const maxName = 128

// open opens the directory and returns the file's name in it.
func (s Store) open(name string) (*os.Root, string, error) {
	if len(name) > maxName || !nameForm().MatchString(name) {
		return nil, "", fmt.Errorf("%q is no name for a state", name)
	}
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return nil, "", err
	}
	info, err := root.Stat(".")
	if err == nil {
		err = checkOwner(info)
	}
	if err != nil {
		return nil, "", errors.Join(err, root.Close())
	}
	return root, name + ".json", nil
}

// read looks before it opens, since opening a FIFO would hang. Nobody else can change the directory in between.
func read(root *os.Root, file string) ([]byte, error) {
	info, err := root.Lstat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSize {
		return nil, fmt.Errorf("%w: not a regular file of at most %d bytes", ErrCorrupt, maxSize)
	}
	if err := checkOwner(info); err != nil {
		return nil, err
	}
	return root.ReadFile(file)
}

// checkOwner refuses what somebody other than root and the caller can change.
func checkOwner(info fs.FileInfo) error {
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("%s %w: it belongs to uid %d", info.Name(), ErrUnsafe, owner)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s %w: its mode is %04o", info.Name(), ErrUnsafe, mode)
	}
	return nil
}

func decode(content []byte, version int, into any) error {
	var e envelope
	if err := json.Unmarshal(content, &e); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	switch {
	case e.Version > version:
		return fmt.Errorf("%w: version %d, known is %d", ErrNewer, e.Version, version)
	case e.Version < 1 || e.Data == nil:
		return fmt.Errorf("%w: no version or no data", ErrCorrupt)
	case e.Version < version:
		return fmt.Errorf("%w: version %d, expected %d", ErrOlder, e.Version, version)
	}
	var strict struct {
		Version int `json:"version"`
		Data    any `json:"data"`
	}
	strict.Data = into
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&strict); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

func encode(version int, v any) ([]byte, error) {
	if version < 1 {
		return nil, fmt.Errorf("version %d is less than 1", version)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	content, err := json.MarshalIndent(envelope{Version: version, Data: data}, "", "  ")
	if err != nil {
		return nil, err
	}
	if len(content) >= maxSize {
		return nil, fmt.Errorf("%d bytes exceed the limit of %d", len(content), maxSize)
	}
	return append(content, '\n'), nil
}

// replace writes, fsyncs and renames. A temporary file that a crash leaves behind (.NAME.json and a number) is never
// read.
func replace(root *os.Root, file string, content []byte) error {
	pending, err := renameio.NewPendingFile(file, renameio.WithRoot(root), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	_, err = pending.Write(content)
	if err == nil {
		err = pending.CloseAtomicallyReplace()
	}
	return errors.Join(err, pending.Cleanup())
}

// syncDir makes a rename or an unlink durable; fsync of the file alone does not (fsync(2)).
func syncDir(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
