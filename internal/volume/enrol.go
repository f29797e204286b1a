package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// keyBytes is the entropy of machine-made keys: that of the volume's cipher.
const keyBytes = 32

// The words by which records name what opens a keyslot.
const (
	sourceTPM2       = "tpm2"
	sourceKeyFile    = "keyfile"
	sourceRecovery   = "recovery"
	sourcePassphrase = "passphrase"
	sourceClevis     = "clevis"
	sourceCredential = "credential"
)

// Enrolment is a source that is to get a key of its own for the container.
type Enrolment interface {
	// Kind is the word for the source in a record.
	Kind() string
	// check finds what would stop prepare, and makes nothing.
	check(ctx context.Context) error
	// prepare makes the key, with all of it that can fail before the container is touched.
	prepare(ctx context.Context, e *enrolling) (*candidate, error)
}

// candidate is a key on its way into a keyslot.
type candidate struct {
	key   *secret.Key
	pbkdf unlock.PBKDF
	// token speaks for the keyslot; nil if there is none.
	token func(keyslot int) any
	kind  string // of the token
	// reopen gets the key as an opening will: with a token from the one that stands in the header. nil: it takes somebody who knows the key.
	reopen func(ctx context.Context, token luks2.Token) (*secret.Key, error)
	// proven is told when the token has been; nil if nobody wants to know.
	proven func(ctx context.Context, token luks2.Token) error
	// deliver hands the proven key to whoever is to keep it; nil if nobody is.
	deliver func(*secret.Key) error
}

// enrolling puts keys into keyslots. Create and the key commands do it alike.
type enrolling struct {
	runner     Runner
	cryptsetup unlock.Cryptsetup
	// container is how people call it; device what cryptsetup works on.
	container, device string
	// way opens a keyslot already.
	way *unlock.Way
	// read gives the valid header as it is now.
	read func() (*luks2.Header, error)
	// noteFile writes a key file down before it is made, and again as soon as its inode is known.
	noteFile func(file ownFile) error
	// noteSlot writes down how the keyslot was filled.
	noteSlot func(filled luks2.Keyslot) error
	// noteTPM writes down what the TPM says while the key of a token is sealed in it.
	noteTPM func(ctx context.Context, device *tpm2.Device, keyslot int, token *tpm2.Token) error
}

// enrol fills a keyslot and proves it from what stands in the header, by what really gives the key.
func (e *enrolling) enrol(ctx context.Context, keyslot int, c *candidate) error {
	if err := e.cryptsetup.AddKey(ctx, e.device, e.way, c.key, keyslot, c.pbkdf); err != nil {
		return err
	}
	header, err := e.read()
	if err != nil {
		return err
	}
	if err := e.noteSlot(header.Metadata.Keyslots[keyslot]); err != nil {
		return err
	}
	if err := e.cryptsetup.Prove(ctx, e.container, header, c.key, keyslot); err != nil {
		return err
	}
	if c.token == nil {
		return e.proveSource(ctx, header, luks2.Token{Keyslots: []int{keyslot}}, c)
	}
	return e.enrolToken(ctx, keyslot, c)
}

func (e *enrolling) enrolToken(ctx context.Context, keyslot int, c *candidate) error {
	text, err := json.Marshal(c.token(keyslot))
	if err != nil {
		return fmt.Errorf("cannot encode a token: %w", err)
	}
	if err := e.cryptsetup.ImportToken(ctx, e.device, text); err != nil {
		return err
	}
	header, err := e.read()
	if err != nil {
		return err
	}
	for _, token := range header.Tokens(c.kind) {
		if slices.Equal(token.Keyslots, []int{keyslot}) {
			return e.proveSource(ctx, header, token, c)
		}
	}
	return wrongf(unlock.ErrCryptsetup, "cannot find the %s token of keyslot %d in the header of %s", c.kind, keyslot, e.container)
}

// proveSource asks the source once more, for a key without a token with one that only names the keyslot.
func (e *enrolling) proveSource(ctx context.Context, header *luks2.Header, token luks2.Token, c *candidate) error {
	if c.reopen == nil {
		return nil
	}
	key, err := c.reopen(ctx, token)
	if err != nil {
		return err
	}
	defer key.Wipe()
	if err := e.cryptsetup.Prove(ctx, e.container, header, key, token.Keyslots[0]); err != nil || c.proven == nil {
		return err
	}
	return c.proven(ctx, token)
}

// EnrolTPM2 seals a new key in a TPM.
type EnrolTPM2 struct {
	// Device is the address of the TPM; see [tpm2.Open].
	Device string
	tpm2.SealOptions
}

// Kind is "tpm2".
func (t EnrolTPM2) Kind() string { return sourceTPM2 }

func (t EnrolTPM2) check(ctx context.Context) error {
	device, err := tpm2.Open(ctx, t.Device)
	if err != nil {
		return err
	}
	defer device.Close()
	return device.Check(ctx, t.SealOptions)
}

func (t EnrolTPM2) prepare(ctx context.Context, e *enrolling) (*candidate, error) {
	sealed, err := secret.Random(keyBytes)
	if err != nil {
		return nil, err
	}
	defer sealed.Wipe()
	device, err := tpm2.Open(ctx, t.Device)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	token, err := device.Seal(ctx, sealed, t.SealOptions)
	if err != nil {
		return nil, err
	}
	key, err := sealed.Base64()
	made := &candidate{key: key, pbkdf: unlock.MinimalPBKDF, kind: tpm2.TokenType, reopen: t.unseal}
	made.token = func(keyslot int) any {
		token.Keyslots = []int{keyslot}
		return token
	}
	made.proven = func(ctx context.Context, token luks2.Token) error {
		return t.with(ctx, token, func(device *tpm2.Device, parsed *tpm2.Token) error {
			return e.noteTPM(ctx, device, token.Keyslots[0], parsed)
		})
	}
	return made, err
}

// unseal asks the TPM for the key of a token, as the next opening will.
func (t EnrolTPM2) unseal(ctx context.Context, token luks2.Token) (key *secret.Key, err error) {
	err = t.with(ctx, token, func(device *tpm2.Device, parsed *tpm2.Token) error {
		unsealed, err := device.UnsealWith(ctx, parsed, tpm2.UnsealOptions{PIN: t.PIN})
		if err != nil {
			return err
		}
		defer unsealed.Wipe()
		key, err = unsealed.Base64()
		return err
	})
	return key, err
}

// with reads a token and opens the TPM for it.
func (t EnrolTPM2) with(ctx context.Context, token luks2.Token, do func(*tpm2.Device, *tpm2.Token) error) error {
	parsed, err := tpm2.ParseToken(token.Raw)
	if err != nil {
		return err
	}
	device, err := tpm2.Open(ctx, t.Device)
	if err != nil {
		return err
	}
	defer device.Close()
	return do(device, parsed)
}

// EnrolKeyFile uses the key file that is there or makes one.
type EnrolKeyFile struct{ Path string }

// Kind is "keyfile".
func (k EnrolKeyFile) Kind() string { return sourceKeyFile }

func (k EnrolKeyFile) check(context.Context) error {
	key, err := unlock.KeyFile{Path: k.Path}.Read()
	key.Wipe()
	if !errors.Is(err, unlock.ErrKeyFileMissing) {
		return err
	}
	if _, err := os.Stat(filepath.Dir(k.Path)); err != nil {
		return fmt.Errorf("cannot make key file %s: %w", k.Path, err)
	}
	return nil
}

// prepare takes a key file that it has made as an opening will: where the filesystem keeps no modes, that may be refused.
func (k EnrolKeyFile) prepare(_ context.Context, e *enrolling) (*candidate, error) {
	file := unlock.KeyFile{Path: k.Path}
	key, err := file.Read()
	if errors.Is(err, unlock.ErrKeyFileMissing) {
		if err = e.makeKeyFile(k.Path); err == nil {
			key, err = file.Read()
		}
	}
	return foundKey(key, err)
}

// foundKey takes a key that was there. What somebody else made may be a short word: then its keyslot must be as slow as a
// passphrase's.
func foundKey(key *secret.Key, err error) (*candidate, error) {
	if err != nil {
		return nil, err
	}
	pbkdf := unlock.MinimalPBKDF
	if key.Len() < keyBytes {
		pbkdf = unlock.HumanPBKDF
	}
	return &candidate{key: key, pbkdf: pbkdf}, nil
}

// makeKeyFile writes a new key 0400 and durably.
func (e *enrolling) makeKeyFile(path string) error {
	file, err := e.openKeyFile(path)
	if err != nil {
		return err
	}
	key, err := secret.Random(keyBytes)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	defer key.Wipe()
	_, err = file.Write(key.Bytes())
	if err := errors.Join(err, file.Sync(), file.Close(), syncFolder(filepath.Dir(path))); err != nil {
		return fmt.Errorf("cannot write key file %s: %w", path, err)
	}
	return nil
}

// openKeyFile makes an empty key file and notes it, before and after.
func (e *enrolling) openKeyFile(path string) (*os.File, error) {
	made := ownFile{Path: path}
	if err := e.noteFile(made); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o400)
	if err != nil {
		return nil, fmt.Errorf("cannot make key file: %w", err)
	}
	err = made.identify(file)
	if err == nil {
		err = e.noteFile(made)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// enrolFound takes the key that a source gives already.
type enrolFound struct {
	kind string
	read func(context.Context) (*secret.Key, error)
}

func (f enrolFound) Kind() string { return f.kind }

func (f enrolFound) check(ctx context.Context) error {
	key, err := f.read(ctx)
	key.Wipe()
	return err
}

// prepare has the source asked once more: a program may print another key each time.
func (f enrolFound) prepare(ctx context.Context, _ *enrolling) (*candidate, error) {
	made, err := foundKey(f.read(ctx))
	if err != nil {
		return nil, err
	}
	made.reopen = func(ctx context.Context, _ luks2.Token) (*secret.Key, error) { return f.read(ctx) }
	return made, nil
}

// EnrolRecovery generates a recovery key.
type EnrolRecovery struct {
	// Deliver gets the key once, when its keyslot is proven. If it fails the enrolment does.
	Deliver func(*secret.Key) error
}

// Kind is "recovery".
func (r EnrolRecovery) Kind() string { return sourceRecovery }

func (r EnrolRecovery) check(context.Context) error { return nil }

// prepare gives the keyslot a token, which lets systemd and people tell its purpose.
func (r EnrolRecovery) prepare(context.Context, *enrolling) (*candidate, error) {
	key, err := secret.RecoveryKey()
	return &candidate{key: key, pbkdf: unlock.MinimalPBKDF, kind: unlock.TokenRecovery, deliver: r.Deliver, token: func(keyslot int) any {
		return recoveryToken{Type: unlock.TokenRecovery, Keyslots: []string{strconv.Itoa(keyslot)}}
	}}, err
}

// recoveryToken is what systemd-cryptenroll writes (src/cryptenroll/cryptenroll-recovery.c).
type recoveryToken struct {
	Type     string   `json:"type"`
	Keyslots []string `json:"keyslots"`
}

// EnrolPassphrase takes a passphrase that a person chose.
type EnrolPassphrase struct {
	// Key is wiped when it has been enrolled.
	Key *secret.Key
}

// Kind is "passphrase".
func (p EnrolPassphrase) Kind() string { return sourcePassphrase }

func (p EnrolPassphrase) check(context.Context) error { return nil }

func (p EnrolPassphrase) prepare(context.Context, *enrolling) (*candidate, error) {
	return &candidate{key: p.Key, pbkdf: unlock.HumanPBKDF}, nil
}
