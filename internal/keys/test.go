package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// Test proves keys on the keyslots of a container without opening it.
type Test struct {
	Container  *Container // with a valid header
	Cryptsetup unlock.Cryptsetup
	// TPMs unseal the systemd-tpm2 tokens, each token by the first that can.
	TPMs []unlock.TPM2
	// Clevis decrypts the clevis tokens.
	Clevis unlock.Clevis
	// Sources offer the other keys, each of them one, in one or several forms.
	Sources []unlock.Source
	// Slots get the proofs.
	Slots []*Slot

	// hopeless is the first failure that says nothing about the key.
	hopeless error
}

// Unplaced is a key that was offered and opens nothing, while every keyslot that it could have opened is opened by
// another, or none is there.
type Unplaced struct {
	Source Source
	Err    error
}

// Run unseals each TPM token, has each clevis token decrypted, and tries the key on the keyslots of the token, then tries what the sources offer on the
// keyslots that it is meant for. A key that opens one keyslot says nothing about the others: those stay untested. One
// that opens none has failed on each that nothing else opens. It fails with the error of a context that ended, and, where
// nothing was proven, with what kept keys from being tried: see [unlock.Hopeless].
func (t *Test) Run(ctx context.Context) ([]Unplaced, error) {
	if err := t.tokens(ctx); err != nil {
		return nil, err
	}
	if err := t.clevisTokens(ctx); err != nil {
		return nil, err
	}
	var misfits []misfit
	for _, source := range t.Sources {
		m := misfit{source: Source(source.Name()), errs: map[int]error{}}
		fits := t.try(ctx, source, &m)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !fits {
			misfits = append(misfits, m)
		}
	}
	unplaced := t.place(misfits)
	if t.hopeless != nil && !slices.ContainsFunc(t.Slots, (*Slot).Proven) {
		return nil, t.hopeless
	}
	return unplaced, nil
}

// note remembers a failure for which no key is to blame, be one offered or not.
func (t *Test) note(ctx context.Context, offered bool, err error) {
	if t.hopeless == nil {
		t.hopeless = unlock.Hopeless(ctx, offered, err)
	}
}

// misfit is a source whose key opens no keyslot.
type misfit struct {
	source Source
	// errs has the error of each keyslot that was tried, or would have been if there were a key; err is the last.
	errs map[int]error
	err  error
}

// try tries every form in which a source offers its key.
func (t *Test) try(ctx context.Context, source unlock.Source, m *misfit) bool {
	m.err = fmt.Errorf("cannot find a keyslot for what was offered: %w", unlock.ErrNoKeyslot)
	fits := false
	for offer, err := range source.Offers(ctx, t.Container.Header) {
		if err != nil {
			t.note(ctx, false, err)
			m.err = err
			for _, number := range offer.Keyslots {
				m.errs[number] = err
			}
			continue
		}
		fits = t.fits(ctx, m, offer) || fits
	}
	return fits
}

// fits tries an offer on all its keyslots, and wipes its key.
func (t *Test) fits(ctx context.Context, m *misfit, offer unlock.Offer) bool {
	defer offer.Key.Wipe()
	fits := false
	for _, number := range offer.Keyslots {
		if err := t.prove(ctx, offer.Key, number); err != nil {
			m.err, m.errs[number] = err, err
			continue
		}
		t.add(number, Proof{Source: m.source, Token: -1})
		fits = true
	}
	return fits
}

// place gives each misfit to the keyslots that are not proven otherwise, and not known to be opened by something else.
func (t *Test) place(misfits []misfit) []Unplaced {
	var unplaced []Unplaced
	for _, m := range misfits {
		placed := false
		for _, slot := range t.Slots {
			if err := m.errs[slot.Number]; err != nil && !slot.Proven() && slot.takes(m.source) {
				slot.Proofs = append(slot.Proofs, Proof{Source: m.source, Token: -1, Err: err})
				placed = true
			}
		}
		if !placed {
			unplaced = append(unplaced, Unplaced{Source: m.source, Err: m.err})
		}
	}
	return unplaced
}

// tokens proves the key of each TPM token. What fails on one ends none of the others.
func (t *Test) tokens(ctx context.Context) error {
	left, failures := t.Container.Header.Tokens(tpm2.TokenType), map[int]error{}
	for _, tpm := range t.TPMs {
		if len(left) == 0 {
			return nil
		}
		left = t.unseal(ctx, tpm, left, failures)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	for _, token := range left {
		t.token(ctx, TPM2, token, nil, failures[token.ID])
	}
	return nil
}

// unseal has a TPM unseal tokens, proves the keys, and gives the tokens that are left, with why.
func (t *Test) unseal(ctx context.Context, tpm unlock.TPM2, tokens []luks2.Token, failures map[int]error) (left []luks2.Token) {
	unsealer, absent := tpm.Open(ctx)
	if absent == nil {
		defer unsealer.Close()
	}
	for _, token := range tokens {
		sealed, err := tpm2.ParseToken(token.Raw)
		if err == nil {
			err = absent
		}
		var key *secret.Key
		if err == nil {
			key, err = unsealer.Unseal(ctx, sealed)
		}
		if err == nil {
			t.token(ctx, TPM2, token, key, nil)
			continue
		}
		left = append(left, token)
		if known := failures[token.ID]; known == nil || weight(err) > weight(known) {
			failures[token.ID] = err
		}
	}
	return left
}

// weight tells how much an error of one TPM says about a token that may be for another: nothing if its key is elsewhere, as it
// may be in a TPM that is absent.
func weight(err error) int {
	switch {
	case errors.Is(err, tpm2.ErrSRKMismatch):
		return 0
	case errors.Is(err, tpm2.ErrAbsent):
		return 1
	}
	return 2
}

// clevisTokens proves the key of each clevis token.
func (t *Test) clevisTokens(ctx context.Context) error {
	for _, token := range t.Container.Header.Tokens(unlock.TokenClevis) {
		key, err := t.Clevis.Decrypt(ctx, token)
		t.token(ctx, Clevis, token, key, err)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// token adds a proof to each keyslot of the token, of its key or of why there is none. It wipes the key.
func (t *Test) token(ctx context.Context, source Source, token luks2.Token, key *secret.Key, err error) {
	defer key.Wipe()
	t.note(ctx, false, err)
	for _, number := range token.Keyslots {
		proof := Proof{Source: source, Token: token.ID, Err: err}
		if err == nil {
			proof.Err = t.prove(ctx, key, number)
		}
		t.add(number, proof)
	}
}

func (t *Test) prove(ctx context.Context, key *secret.Key, number int) error {
	err := t.Cryptsetup.Prove(ctx, t.Container.Path, t.Container.Header, key, number)
	t.note(ctx, true, err)
	return err
}

func (t *Test) slot(number int) *Slot {
	for _, slot := range t.Slots {
		if slot.Number == number {
			return slot
		}
	}
	return nil
}

// add notes a proof. What opens a keyslot of which no token tells what kind it is does.
func (t *Test) add(number int, proof Proof) {
	slot := t.slot(number)
	if slot == nil {
		return
	}
	slot.Proofs = append(slot.Proofs, proof)
	if proof.Err == nil && slot.untold() && !slot.Ours {
		slot.Source = proof.Source
	}
}

// Verdict sums up a test.
type Verdict int

// The verdicts.
const (
	// NoneProven: nothing was shown to open the container.
	NoneProven Verdict = iota
	// SomeFailed: something opens it, something else that should does not.
	SomeFailed
	// AllProven: everything that was offered opens it.
	AllProven
)

// Judge sums up the proofs of slots. A keyslot that luksmediad made and that is missing counts as failed.
func Judge(slots []*Slot, unplaced []Unplaced) Verdict {
	proven, failed := false, len(unplaced) > 0
	for _, slot := range slots {
		proven = proven || slot.Proven()
		failed = failed || slot.Missing || len(slot.Failures()) > 0
	}
	switch {
	case !proven:
		return NoneProven
	case failed:
		return SomeFailed
	}
	return AllProven
}

// Err is why the keyslot cannot be relied on: nil if it is proven or was not tested.
func (s *Slot) Err() error {
	switch failures := s.Failures(); {
	case s.Missing:
		return fmt.Errorf("cannot find keyslot %d, which luksmediad made: %w", s.Number, unlock.ErrNoKeyslot)
	case s.Proven(), len(failures) == 0:
		return nil
	default:
		return failures[0].Err
	}
}
