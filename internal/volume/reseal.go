package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// resealPatience bounds what a TPM that does not answer adds to an opening.
const resealPatience = 30 * time.Second

// resealSource is the configured TPM whose keys are to be sealed anew; nil if none is.
func (v *Volume) resealSource() *config.TPM2 {
	for _, source := range v.config.Unlock {
		if source.TPM2 != nil && source.TPM2.Reseal {
			return source.TPM2
		}
	}
	return nil
}

// reseal seals a new key in place of each that the TPM refuses because PCRs or its storage root key have changed, once another
// source has opened the volume by key. Nothing that fails here concerns the open volume.
func (o *opening) reseal(ctx context.Context, key *secret.Key) {
	source := o.resealSource()
	if source == nil || key.Len() == 0 || o.opened.Source == sourceTPM2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resealPatience)
	defer cancel()
	for _, token := range o.refusedTokens(ctx, source.Device) {
		if err := o.resealToken(ctx, source.Device, token, key); err != nil {
			o.observer.Event(journal.ResealFailed, journal.F("ERROR", err.Error()))
			return
		}
	}
}

// refusedToken is a token whose key the TPM does not give any more.
type refusedToken struct {
	*tpm2.Token
	reason error
}

// refusedTokens are those of keyslots that luksmediad made; none if the TPM gives the key of one, or does not for another reason than
// that PCRs or storage root key have changed: a new token would not mend that.
func (o *opening) refusedTokens(ctx context.Context, address string) (refused []refusedToken) {
	device, err := tpm2.Open(ctx, address)
	if err != nil {
		return nil
	}
	defer device.Close()
	for _, token := range o.opened.Header.Tokens(tpm2.TokenType) {
		if !o.madeByTPM(token) {
			continue
		}
		parsed, err := tpm2.ParseToken(token.Raw)
		if err != nil || parsed.PIN {
			continue // nobody is here to give a PIN
		}
		key, err := device.Unseal(ctx, parsed)
		key.Wipe()
		if !errors.Is(err, tpm2.ErrPolicy) && !errors.Is(err, tpm2.ErrSRKMismatch) {
			return nil
		}
		refused = append(refused, refusedToken{parsed, err})
	}
	return refused
}

func (o *opening) madeByTPM(token luks2.Token) bool {
	if len(token.Keyslots) != 1 {
		return false
	}
	made, ours := o.opened.Record.keyslot(o.opened.Header, token.Keyslots[0])
	return ours && made.Source == sourceTPM2
}

// keyChanging changes the keys of what is open.
func (o *opening) keyChanging() *keyChanging {
	return &keyChanging{Volume: o.Volume, observer: o.observer, record: o.opened.Record, container: o.container,
		header: o.opened.Header, before: o.opened.Header, device: o.backing.path}
}

// resealToken puts a new keyslot with the same PCRs in place of the token's.
func (o *opening) resealToken(ctx context.Context, device string, old refusedToken, key *secret.Key) error {
	copied, err := key.Copy()
	if err != nil {
		return err
	}
	k := o.keyChanging()
	k.ways = []*unlock.Way{{Source: o.opened.Source, Keyslots: []int{o.opened.Keyslot}, Key: copied}}
	defer unlock.WipeWays(k.ways)
	if err := errors.Join(k.loadJournal(), k.refresh()); err != nil {
		return err
	}
	if made, ours := k.record.keyslot(k.header, old.Keyslots[0]); !ours || made.Source != sourceTPM2 {
		return nil
	}
	if err := k.checkWhole(); err != nil {
		return err
	}
	if err := k.cleanUp(ctx); err != nil {
		return err
	}
	wanted := EnrolTPM2{Device: device, SealOptions: tpm2.SealOptions{PCRs: old.PCRs, Bank: old.Bank}}
	added := &AddedKey{Replaced: old.Keyslots}
	if err := k.add(ctx, wanted, added); err != nil {
		return err
	}
	o.opened.Header = k.header
	made := k.tpmToken(added.Keyslot) // which has just been read and proven
	o.observer.Event(journal.Resealed, journal.F("KEYSLOT", added.Keyslot), journal.F("REPLACED", old.Keyslots[0]),
		journal.F("OLD_POLICY", fmt.Sprintf("%x", old.PolicyHash)), journal.F("NEW_POLICY", fmt.Sprintf("%x", made.PolicyHash)),
		journal.F("REASON", old.reason.Error()))
	return nil
}
