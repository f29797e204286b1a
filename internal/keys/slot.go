package keys

import (
	"maps"
	"slices"

	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
)

// Source says what opens a keyslot.
type Source string

// The sources that can be told apart. A keyslot without a token takes a passphrase or a key file; which of them is
// known only of those that luksmediad made and of those that were proven.
const (
	TPM2       Source = "tpm2"
	Recovery   Source = "recovery"
	KeyFile    Source = "keyfile"
	Credential Source = "credential"
	Command    Source = "command"
	Passphrase Source = "passphrase"
	Clevis     Source = "clevis"
	FIDO2      Source = "fido2"
	PKCS11     Source = "pkcs11"
	Unknown    Source = "unknown"
)

// Slot is one keyslot.
type Slot struct {
	Number int
	Source Source
	// Tokens are those that speak for the keyslot, by number.
	Tokens []luks2.Token
	KDF    luks2.KDF
	// Ours: luksmediad made it. Missing: it did, but the header has it no more.
	Ours, Missing bool
	// Unbound: its key is not that of the volume.
	Unbound bool
	// Proofs is what was tried on it, empty if nothing was.
	Proofs []Proof
}

// Proof is one key tried on one keyslot.
type Proof struct {
	Source Source
	// Token is the number of the token that the key is of, -1 if it is of none.
	Token int
	// Err is nil if the key opens the keyslot.
	Err error
}

// Proven tells whether a key was shown to open the keyslot.
func (s *Slot) Proven() bool {
	return slices.ContainsFunc(s.Proofs, func(p Proof) bool { return p.Err == nil })
}

// Failures lists the keys that should have opened the keyslot and did not.
func (s *Slot) Failures() []Proof {
	return slices.DeleteFunc(slices.Clone(s.Proofs), func(p Proof) bool { return p.Err == nil })
}

// takes tells whether a key of a source may belong to the keyslot, as far as the record tells: what is recorded as a
// recovery key may be any passphrase.
func (s *Slot) takes(source Source) bool {
	return !s.Ours || s.Source == source || s.Source == Recovery && source == Passphrase
}

// untold tells whether no token says what opens the keyslot.
func (s *Slot) untold() bool { return len(s.Tokens) == 0 || s.Source == Unknown }

// Slots lists the keyslots of a valid header, ascending, and with them those of made that the header lacks.
func Slots(header *luks2.Header, made []volume.Keyslot) []*Slot {
	slots := map[int]*Slot{}
	bound := header.Slots()
	for number, keyslot := range header.Metadata.Keyslots {
		slot := &Slot{Number: number, KDF: keyslot.KDF, Unbound: !slices.Contains(bound, number)}
		slot.Tokens = tokensOf(header, number)
		slot.Source = sourceOf(slot.Tokens)
		slots[number] = slot
	}
	for _, keyslot := range made {
		slot := slots[keyslot.Slot]
		if slot == nil {
			slot = &Slot{Number: keyslot.Slot, Missing: true}
			slots[keyslot.Slot] = slot
		} else if !keyslot.In(header) {
			continue // somebody else's in its place
		}
		if slot.Ours = true; slot.untold() {
			slot.Source = Source(keyslot.Source)
		}
	}
	return slices.SortedFunc(maps.Values(slots), func(a, b *Slot) int { return a.Number - b.Number })
}

func tokensOf(header *luks2.Header, keyslot int) []luks2.Token {
	var tokens []luks2.Token
	for _, id := range slices.Sorted(maps.Keys(header.Metadata.Tokens)) {
		if token := header.Metadata.Tokens[id]; slices.Contains(token.Keyslots, keyslot) {
			tokens = append(tokens, token)
		}
	}
	return tokens
}

// sourceOf is the source of the first token that is known.
func sourceOf(tokens []luks2.Token) Source {
	if len(tokens) == 0 {
		return Passphrase
	}
	for _, token := range tokens {
		if source := sourceOfToken(token.Type); source != Unknown {
			return source
		}
	}
	return Unknown
}

// sourceOfToken knows the types that systemd (src/shared/cryptsetup-util.h, src/cryptenroll) and clevis write.
func sourceOfToken(kind string) Source {
	switch kind {
	case tpm2.TokenType:
		return TPM2
	case unlock.TokenRecovery:
		return Recovery
	case "systemd-fido2":
		return FIDO2
	case "systemd-pkcs11":
		return PKCS11
	case unlock.TokenClevis:
		return Clevis
	}
	return Unknown
}
