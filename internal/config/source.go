package config

import (
	"strings"
	"time"
)

// KeySource is one way to get a key. Exactly one field is set.
type KeySource struct {
	TPM2       *TPM2       `yaml:"tpm2,omitempty"`
	Keyfile    *Keyfile    `yaml:"keyfile,omitempty"`
	Credential *Credential `yaml:"credential,omitempty"`
	Clevis     *Clevis     `yaml:"clevis,omitempty"`
	Command    *Command    `yaml:"command,omitempty"`
	Passphrase *Passphrase `yaml:"passphrase,omitempty"`
}

// Kind is the word for the source in the configuration.
func (s KeySource) Kind() string {
	switch {
	case s.TPM2 != nil:
		return "tpm2"
	case s.Keyfile != nil:
		return "keyfile"
	case s.Credential != nil:
		return "credential"
	case s.Clevis != nil:
		return "clevis"
	case s.Command != nil:
		return "command"
	case s.Passphrase != nil:
		return "passphrase"
	}
	return ""
}

// SourceKinds lists the words for a source.
func SourceKinds() []string {
	return []string{"clevis", "command", "credential", "keyfile", "passphrase", "tpm2"}
}

// Patience is about how long asking the source may take: what it waits for, until it gives up.
func (s KeySource) Patience() time.Duration {
	switch {
	case s.TPM2 != nil && s.TPM2.PIN == AskPIN:
		return s.TPM2.Wait + PINTimeout
	case s.TPM2 != nil:
		return s.TPM2.Wait
	case s.Keyfile != nil:
		return s.Keyfile.Wait
	case s.Clevis != nil:
		return s.Clevis.Timeout
	case s.Command != nil:
		return s.Command.Timeout
	case s.Passphrase != nil:
		return s.Passphrase.Timeout
	}
	return 0
}

// TPM2 is a key sealed in a TPM.
type TPM2 struct {
	// Device is "auto", a path like /dev/tpmrm0, or a TCTI: device:/dev/tpmrm0, swtpm:path=SOCKET, swtpm:host=HOST,port=N.
	Device string `yaml:"device"`
	PCRs   []int  `yaml:"pcrs,flow"` // 0 to 23, ascending; the policy of a new keyslot
	Bank   Bank   `yaml:"bank"`      // of the PCRs of a new keyslot
	// PIN is [NoPIN], [AskPIN], or the path of a file that holds it.
	PIN string `yaml:"pin"`
	// Signature is "auto" or the path of a file with signed PCR policies.
	Signature string `yaml:"signature"`
	// Wait is how long a TPM that is announced and not there yet is waited for.
	Wait time.Duration `yaml:"wait"`
	// Reseal has a new key sealed when this TPM refuses the old one and another source has opened the volume.
	Reseal bool `yaml:"reseal"`
}

// Bank is a PCR bank.
type Bank string

// The banks that systemd knows.
const (
	SHA1   Bank = "sha1"
	SHA256 Bank = "sha256"
	SHA384 Bank = "sha384"
	SHA512 Bank = "sha512"
)

const (
	// NoPIN: a new keyslot has none, and tokens that want one are left to other sources.
	NoPIN = "none"
	// AskPIN: a person is asked.
	AskPIN = "ask"
	// PINTimeout is how long the question for a PIN stands.
	PINTimeout = time.Minute
	// AutoSignature: the signed PCR policies are where systemd looks for them.
	AutoSignature = "auto"
)

// WantsPIN tells whether a new keyslot gets a PIN, and tokens with one are tried.
func (t *TPM2) WantsPIN() bool { return t.PIN != "" && t.PIN != NoPIN }

// PINFile is the file that holds the PIN, empty if none does.
func (t *TPM2) PINFile() string {
	if strings.HasPrefix(t.PIN, "/") {
		return t.PIN
	}
	return ""
}

// Keyfile is a file whose content is a key.
type Keyfile struct {
	Path string `yaml:"path"` // absolute
	// Wait is how long a file that is not there is waited for.
	Wait time.Duration `yaml:"wait"`
}

// Credential is a credential of the service whose content is a key.
type Credential struct {
	Name string `yaml:"name"`
}

// Clevis are the clevis tokens of the container.
type Clevis struct {
	Timeout time.Duration `yaml:"timeout"` // for each token
}

// Command is a program that prints a key.
type Command struct {
	Run     []string      `yaml:"run"` // absolute path and arguments
	Timeout time.Duration `yaml:"timeout"`
}

// Passphrase is a passphrase that a person is asked for.
type Passphrase struct {
	Timeout time.Duration `yaml:"timeout"`
}

func defaultTPM2() *TPM2 {
	return &TPM2{Device: "auto", PCRs: []int{}, Bank: SHA256, PIN: NoPIN, Signature: AutoSignature, Wait: 30 * time.Second}
}

// defaultKeyfile waits as long as a memory stick needs to be found and mounted. Most key files lie on the root
// filesystem: one that is gone there must not hold up the next source for longer.
func defaultKeyfile() *Keyfile {
	return &Keyfile{Path: "/root/.luks-media.key", Wait: 5 * time.Second}
}

func defaultCredential() *Credential { return &Credential{Name: "luksmediad.key"} }

func defaultClevis() *Clevis { return &Clevis{Timeout: 30 * time.Second} }

func defaultCommand() *Command { return &Command{Timeout: 30 * time.Second} }

func defaultPassphrase() *Passphrase { return &Passphrase{Timeout: time.Minute} }
