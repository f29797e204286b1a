package unlock

import (
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"luksmediad/pkg/unlock/luks2"
)

// maxPins bounds how many pins one token may ask for, the nested ones included: each is a process and may be a request.
const maxPins = 32

// sealedKey is a key that clevis can decrypt.
type sealedKey struct {
	// compact is the JWE in compact form (RFC 7516, 7.1), which "clevis decrypt" reads.
	compact string
	// pins are those that it asks for, in the order in which they are met.
	pins []string
}

// onTimeout is the class of a decryption that takes too long.
func (s *sealedKey) onTimeout() error {
	if slices.Contains(s.pins, "tang") {
		return ErrTangUnreachable
	}
	return ErrClevis
}

// parseClevis reads a token that clevis-luks-bind wrote (src/luks/clevis-luks-common-functions, clevis_luks_save_slot):
//
//	{"type":"clevis","keyslots":["1"],"jwe":{"protected":…,"encrypted_key":…,"iv":…,"ciphertext":…,"tag":…}}
//
// It is strict, because the decrypting scripts are not: they put what the header of the JWE says into command lines of
// curl and tpm2-tools, in part without quotes (src/pins/tpm2/clevis-decrypt-tpm2, pcr_spec), and nobody has
// authenticated it before. A token that asks for a pin other than tang, tpm2 and sss is [ErrTokenUnsupported], all else
// that clevis would not have written [ErrToken].
func parseClevis(raw []byte) (*sealedKey, error) {
	token, err := luks2.ParseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	jwe, ok := token["jwe"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%w: it has no jwe", ErrToken)
	}
	parts := make([]string, 0, 5)
	for _, name := range []string{"protected", "encrypted_key", "iv", "ciphertext", "tag"} {
		part, ok := jwe[name].(string)
		if !ok {
			return nil, fmt.Errorf("%w: its jwe has no %s", ErrToken, name)
		}
		parts = append(parts, part)
	}
	if len(jwe) != len(parts) || len(token) != 3 {
		return nil, fmt.Errorf("%w: it has members that clevis does not write", ErrToken)
	}
	s := &sealedKey{compact: strings.Join(parts, ".")}
	return s, s.readCompact(s.compact)
}

// readCompact checks a JWE and those in it.
func (s *sealedKey) readCompact(compact string) error {
	parts := strings.Split(compact, ".")
	if len(parts) != 5 {
		return fmt.Errorf("%w: a JWE has %d parts instead of 5", ErrToken, len(parts))
	}
	for _, part := range parts {
		if _, err := base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return fmt.Errorf("%w: a part of a JWE is not base64url: %w", ErrToken, err)
		}
	}
	protected, _ := base64.RawURLEncoding.DecodeString(parts[0])
	header, err := luks2.ParseObject(protected)
	if err != nil {
		return fmt.Errorf("%w: the header of a JWE: %w", ErrToken, err)
	}
	return s.readHeader(header)
}

// readHeader checks what a pin will be told.
func (s *sealedKey) readHeader(header map[string]any) error {
	clevis, _ := header["clevis"].(map[string]any)
	pin, ok := clevis["pin"].(string)
	if !ok {
		return fmt.Errorf("%w: the header of a JWE names no pin", ErrToken)
	}
	settings, ok := clevis[pin].(map[string]any)
	if !ok || len(clevis) != 2 {
		return fmt.Errorf("%w: the header of a JWE has no settings of its pin alone", ErrToken)
	}
	if s.pins = append(s.pins, pin); len(s.pins) > maxPins {
		return fmt.Errorf("%w: it asks for more than %d pins", ErrToken, maxPins)
	}
	switch pin {
	case "tang":
		return checkTang(header, settings)
	case "tpm2":
		return checkSettings(settings, tpm2Settings())
	case "sss":
		return s.readShares(settings)
	}
	return fmt.Errorf("%w: it asks for the pin %q of clevis", ErrTokenUnsupported, pin)
}

const base64URL = `[A-Za-z0-9_-]+`

// checkTang checks the URL and the name of the key, of which a request is made, and the curve, of which a key is.
func checkTang(header, settings map[string]any) error {
	// Without scheme curl takes http.
	const url = `(https?://)?([A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?`
	ephemeral, _ := header["epk"].(map[string]any)
	return errors.Join(
		checkText("url", settings["url"], url),
		checkText("kid", header["kid"], base64URL),
		checkText("crv", ephemeral["crv"], `[A-Za-z0-9-]+`))
}

// tpm2Settings are what clevis-encrypt-tpm2 writes: names of algorithms, numbers of PCRs, and the sealed object.
func tpm2Settings() map[string]string {
	const name = `[a-z0-9_]{1,32}`
	return map[string]string{
		"hash": name, "key": name, "pcr_bank": name, "pcr_ids": `[0-9]{1,2}(,[0-9]{1,2})*`,
		"pcr_digest": base64URL, "jwk_pub": base64URL, "jwk_priv": base64URL,
	}
}

func checkSettings(settings map[string]any, allowed map[string]string) error {
	for name, value := range settings {
		pattern, ok := allowed[name]
		if !ok {
			return fmt.Errorf("%w: the setting %q of its pin", ErrTokenUnsupported, name)
		}
		if err := checkText(name, value, pattern); err != nil {
			return err
		}
	}
	return nil
}

func checkText(name string, value any, pattern string) error {
	text, ok := value.(string)
	if !ok || !regexp.MustCompile(`^(?:`+pattern+`)$`).MatchString(text) {
		return fmt.Errorf("%w: %s is %.100q", ErrToken, name, fmt.Sprint(value))
	}
	return nil
}

// readShares checks the JWEs of which a pin sss wants some.
func (s *sealedKey) readShares(settings map[string]any) error {
	shares, ok := settings["jwe"].([]any)
	if !ok || len(shares) == 0 {
		return fmt.Errorf("%w: its pin sss has no shares", ErrToken)
	}
	for _, share := range shares {
		compact, ok := share.(string)
		if !ok {
			return fmt.Errorf("%w: a share of its pin sss is no JWE", ErrToken)
		}
		if err := s.readCompact(compact); err != nil {
			return err
		}
	}
	return nil
}
