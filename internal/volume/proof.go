package volume

import (
	"bytes"
	"slices"
	"time"

	"luksmediad/pkg/unlock/luks2"
)

// proofVersion is raised when a field changes its meaning.
const proofVersion = 1

// KeyProof is when a key was last seen to open a keyslot.
type KeyProof struct {
	Keyslot int `json:"keyslot"`
	// Salt is that of the keyslot: filled anew, it is not proven any more.
	Salt   Hex       `json:"salt"`
	Source string    `json:"source"`
	Time   time.Time `json:"time"`
}

type proofs struct {
	Proofs []KeyProof `json:"proofs"`
}

func (v *Volume) proofName() string { return "proofs-" + v.Name() }

// NoteProof writes down that a key of source opens the keyslot of the header. Of two that do so at the same time one may get lost: a
// warning then comes early.
func (v *Volume) NoteProof(header *luks2.Header, keyslot int, source string) error {
	known, err := v.loadProofs()
	if err != nil {
		return err
	}
	known = slices.DeleteFunc(known, func(p KeyProof) bool { return p.Keyslot == keyslot })
	known = append(known, KeyProof{Keyslot: keyslot, Salt: header.Metadata.Keyslots[keyslot].KDF.Salt, Source: source,
		Time: time.Now().UTC().Truncate(time.Second)})
	return v.states.Save(v.proofName(), proofVersion, proofs{known})
}

// Proofs are those of the keyslots as the header has them.
func (v *Volume) Proofs(header *luks2.Header) ([]KeyProof, error) {
	known, err := v.loadProofs()
	return slices.DeleteFunc(known, func(p KeyProof) bool {
		keyslot, there := header.Metadata.Keyslots[p.Keyslot]
		return !there || !bytes.Equal(keyslot.KDF.Salt, p.Salt)
	}), err
}

func (v *Volume) loadProofs() ([]KeyProof, error) {
	var file proofs
	err := v.states.Load(v.proofName(), proofVersion, &file)
	if isAbsent(err) {
		return nil, nil
	}
	return file.Proofs, err
}

// noteProof does not let what is proven fail because it could not be written down.
func (v *Volume) noteProof(header *luks2.Header, keyslot int, source string) {
	_ = v.NoteProof(header, keyslot, source)
}

// forgetProof takes back what was written down of a keyslot.
func (v *Volume) forgetProof(keyslot int) error {
	known, err := v.loadProofs()
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(known), func(p KeyProof) bool { return p.Keyslot == keyslot })
	if len(left) == len(known) {
		return nil
	}
	return v.states.Save(v.proofName(), proofVersion, proofs{left})
}
