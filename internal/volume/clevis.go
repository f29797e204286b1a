package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

// clevisPatience bounds how long the proof of a new token takes: its servers have just answered.
const clevisPatience = 30 * time.Second

// EnrolClevis binds a new key to a clevis pin, such as a tang server, by the clevis tools.
type EnrolClevis struct {
	// Pin is "tang", "sss", "tpm2"; Config its configuration, a JSON object. Neither is secret.
	Pin, Config string
	// Trust takes whatever keys a tang server advertises that the configuration neither names (thp) nor contains (adv).
	Trust bool
}

// Kind is "clevis".
func (c EnrolClevis) Kind() string { return sourceClevis }

// check leaves the configuration to the pin.
func (c EnrolClevis) check(context.Context) error {
	var object map[string]any
	if err := json.Unmarshal([]byte(c.Config), &object); err != nil {
		return wrongf(ErrClevis, "cannot use the configuration of clevis pin %s: it is not a JSON object", c.Pin)
	}
	return nil
}

// prepare makes a key of printable characters, which clevis passes through shell variables.
func (c EnrolClevis) prepare(ctx context.Context, e *enrolling) (*candidate, error) {
	raw, err := secret.Random(keyBytes)
	if err != nil {
		return nil, err
	}
	defer raw.Wipe()
	key, err := raw.Base64()
	if err != nil {
		return nil, err
	}
	jwe, err := c.encrypt(ctx, e.runner, key)
	if err != nil {
		key.Wipe()
		return nil, err
	}
	return &candidate{key: key, pbkdf: unlock.MinimalPBKDF, kind: unlock.TokenClevis, token: func(keyslot int) any {
		return clevisToken{Type: unlock.TokenClevis, Keyslots: []string{strconv.Itoa(keyslot)}, JWE: *jwe}
	}, reopen: unlock.Clevis{Runner: e.runner, Timeout: clevisPatience}.Decrypt}, nil
}

// clevisToken is what clevis luks bind writes (clevis_luks2_save_slot in src/luks/clevis-luks-common-functions).
type clevisToken struct {
	Type     string   `json:"type"`
	Keyslots []string `json:"keyslots"`
	JWE      jwe      `json:"jwe"`
}

// jwe is a JSON Web Encryption in the flattened form (RFC 7516, section 7.2.2), as jose writes it.
type jwe struct {
	Ciphertext   string `json:"ciphertext"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Protected    string `json:"protected"`
	Tag          string `json:"tag"`
}

// parseJWE reads the compact form (section 7.1), which clevis encrypt writes.
func parseJWE(compact string) (*jwe, error) {
	parts := strings.Split(strings.TrimSpace(compact), ".")
	if len(parts) != 5 {
		return nil, wrongf(ErrClevis, "cannot read what clevis encrypt has written: it has %d parts, not 5", len(parts))
	}
	return &jwe{Protected: parts[0], EncryptedKey: parts[1], IV: parts[2], Ciphertext: parts[3], Tag: parts[4]}, nil
}

// encrypt hands the key to clevis through a pipe.
func (c EnrolClevis) encrypt(ctx context.Context, runner Runner, key *secret.Key) (*jwe, error) {
	stdin, err := key.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	args := []string{"encrypt", c.Pin, c.Config}
	if c.Trust {
		args = append(args, "-y")
	}
	out, err := runner.Run(ctx, stdin, nil, "clevis", args...)
	if err != nil {
		return nil, clevisFailure("encrypt a key for clevis pin "+c.Pin, err)
	}
	return parseJWE(string(out))
}

// clevisFailure keeps the class of a program that is not there.
func clevisFailure(what string, err error) error {
	var ran interface{ ExitCode() int }
	if errors.As(err, &ran) && ran.ExitCode() >= 0 {
		return fmt.Errorf("cannot %s: %w: %w", what, ErrClevis, err)
	}
	return fmt.Errorf("cannot %s: %w", what, err)
}

// NeedsTrust tells whether the configuration of a clevis pin names a tang server without saying which keys of it to trust, and
// whether another one is there that says so: clevis takes one decision for all.
func NeedsTrust(pin, config string) (needs, mixed bool) {
	var document any
	if json.NewDecoder(bytes.NewReader([]byte(config))).Decode(&document) != nil {
		return false, false
	}
	open, named := 0, 0
	countTang(document, &open, &named)
	return pin != "tpm2" && open > 0, open > 0 && named > 0
}

// countTang counts what looks like the configuration of a tang server, at whatever depth of an sss configuration.
func countTang(node any, open, named *int) {
	switch node := node.(type) {
	case map[string]any:
		if _, tang := node["url"]; tang {
			if node["thp"] != nil || node["adv"] != nil {
				*named++
			} else {
				*open++
			}
		}
		for _, child := range node {
			countTang(child, open, named)
		}
	case []any:
		for _, child := range node {
			countTang(child, open, named)
		}
	}
}
