package unlock

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// PINs yields the PIN of TPM tokens.
type PINs interface {
	// PIN is asked for at most once in an opening, when a token wants one. The caller wipes it.
	PIN(ctx context.Context) (*secret.Key, error)
	// Wrong says that a TPM has refused it.
	Wrong()
}

// PIN lets a function that asks be a [PINs]: a person may mistype, and is asked again at the next opening.
func (a Ask) PIN(ctx context.Context) (*secret.Key, error) { return a(ctx) }

// Wrong does nothing.
func (a Ask) Wrong() {}

// PINFile reads the PIN from a file, without a newline at its end. A PIN that a TPM has refused is not tried a second
// time as long as the file stays as it is: every wrong one brings the TPM nearer to its lockout.
type PINFile struct {
	// Path is absolute; the file has to be as private as a key file.
	Path string

	mu    sync.Mutex
	read  fileState
	wrong fileState
}

// PIN implements [PINs]. It fails as [KeyFile.Read] does, and with [tpm2.ErrPIN] for one that was refused before.
func (p *PINFile) PIN(context.Context) (*secret.Key, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := stateOf(p.Path)
	if state == p.wrong && state != (fileState{}) {
		return nil, fmt.Errorf("cannot use the PIN in %s: it was refused before, and the file has not changed since: %w", p.Path, tpm2.ErrPIN)
	}
	key, err := KeyFile{Path: p.Path}.Read()
	if err != nil {
		return nil, fmt.Errorf("cannot read the PIN: %w", err)
	}
	p.read = state
	return withoutNewline(key, "the PIN in "+p.Path)
}

// Wrong implements [PINs].
func (p *PINFile) Wrong() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wrong = p.read
}

// fileState is what changes with the content of a file.
type fileState struct {
	device, inode uint64
	size          int64
	changed       unix.Timespec
}

// stateOf is zero where nothing can be told.
func stateOf(path string) fileState {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return fileState{}
	}
	return fileState{device: stat.Dev, inode: stat.Ino, size: stat.Size, changed: stat.Ctim}
}
