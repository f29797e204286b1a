package unlock

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// PINs yields the PIN of TPM tokens.
type PINs interface {
	// Untried fails with [tpm2.ErrPIN] if a TPM has refused the PIN for the token before, so that it is not tried again.
	Untried(token *tpm2.Token) error
	// PIN is asked for at most once in an opening, when a token wants one. The caller wipes it.
	PIN(ctx context.Context) (*secret.Key, error)
	// Wrong says that a TPM has refused it for the token. It fails if that will be forgotten.
	Wrong(token *tpm2.Token) error
}

// Untried is nil: a person may mistype, and is asked again at the next opening.
func (a Ask) Untried(*tpm2.Token) error { return nil }

// PIN lets a function that asks be a [PINs].
func (a Ask) PIN(ctx context.Context) (*secret.Key, error) { return a(ctx) }

// Wrong does nothing.
func (a Ask) Wrong(*tpm2.Token) error { return nil }

// PINFile reads the PIN from a file, without a newline at its end. A PIN that a TPM has refused for a token is not tried a
// second time on it as long as the file stays as it is: every wrong one brings the TPM nearer to its lockout.
type PINFile struct {
	// Path is absolute; the file has to be as private as a key file.
	Path string
	// Memory remembers what was refused for other processes; nil: only this PINFile does.
	Memory Refusals

	mu    sync.Mutex
	read  RefusedPIN
	wrong map[RefusedPIN]bool
}

// Refusals is a memory of refused PINs that outlives the process.
type Refusals interface {
	// Refused is false also where the memory cannot be read: a right PIN must not fail for that.
	Refused(pin RefusedPIN) bool
	Refuse(pin RefusedPIN) error
}

// RefusedPIN is a PIN file as it was, and a token whose PIN it does not have. Nothing in it tells the PIN. The number of the
// device is not in it: it may be another one after each boot.
type RefusedPIN struct {
	Path  string `json:"path"`
	Inode uint64 `json:"inode"`
	Bytes int64  `json:"bytes"`
	// Modified and Changed are in ns since 1970.
	Modified int64 `json:"modified"`
	Changed  int64 `json:"changed"`
	// Token is a digest of the sealed object.
	Token string `json:"token"`
}

// Untried implements [PINs].
func (p *PINFile) Untried(token *tpm2.Token) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	file := stateOf(p.Path)
	if file == (RefusedPIN{}) {
		return nil // reading it says why
	}
	file.Token = digestOf(token)
	if p.wrong[file] || p.Memory != nil && p.Memory.Refused(file) {
		return fmt.Errorf("cannot use the PIN in %s: it was refused before, and the file has not changed since: %w", p.Path, tpm2.ErrPIN)
	}
	return nil
}

// PIN implements [PINs]. It fails as [KeyFile.Read] does.
func (p *PINFile) PIN(context.Context) (*secret.Key, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read = stateOf(p.Path) // before the content: a file that changes in between counts as another one
	key, err := KeyFile{Path: p.Path}.Read()
	if err != nil {
		return nil, fmt.Errorf("cannot read the PIN: %w", err)
	}
	pin, err := WithoutNewline(key, "the PIN in "+p.Path)
	if err != nil {
		return nil, &FileError{Path: p.Path, Reason: err}
	}
	return pin, nil
}

// Wrong implements [PINs].
func (p *PINFile) Wrong(token *tpm2.Token) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	refused := p.read
	refused.Token = digestOf(token)
	if p.wrong == nil {
		p.wrong = map[RefusedPIN]bool{}
	}
	p.wrong[refused] = true
	if p.Memory == nil {
		return nil
	}
	return p.Memory.Refuse(refused)
}

// stateOf is zero where nothing can be told.
func stateOf(path string) RefusedPIN {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return RefusedPIN{}
	}
	return RefusedPIN{Path: path, Inode: stat.Ino, Bytes: stat.Size, Modified: stat.Mtim.Nano(), Changed: stat.Ctim.Nano()}
}

// digestOf tells one sealed object from another.
func digestOf(token *tpm2.Token) string {
	digest := sha256.Sum256(append(append([]byte{}, token.Public...), token.Private...))
	return hex.EncodeToString(digest[:])
}
