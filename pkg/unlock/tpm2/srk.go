package tpm2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

const (
	// srkHandle is where the storage root key is kept (TCG TPM v2.0 Provisioning Guidance, "Reserved Handles").
	srkHandle tpm2.TPMHandle = 0x81000001
	// Persistent handles (TPM 2.0 Library, Part 2, "Handles").
	firstPersistent, lastPersistent = 0x81000000, 0x81ffffff
	// resourceKey marks a key in the resources that tpm2-tss serializes (src/tss2-esys/esys_types.h, IESYSC_KEY_RSRC).
	resourceKey = 1
)

// SRK identifies a persistent storage root key.
type SRK struct {
	Handle uint32
	// Name is the algorithm and digest that identify the key; Public is its TPMT_PUBLIC.
	Name, Public []byte
}

// marshal writes the field tpm2_srk: handle, TPM2B_NAME, resource type,
// TPM2B_PUBLIC (tpm2-tss, Esys_TR_Serialize).
func (s *SRK) marshal() []byte {
	out := binary.BigEndian.AppendUint32(nil, s.Handle)
	out = appendSized(out, s.Name)
	out = binary.BigEndian.AppendUint32(out, resourceKey)
	return appendSized(out, s.Public)
}

func parseSRK(data []byte) (*SRK, error) {
	if len(data) < 4 {
		return nil, malformed("tpm2_srk is too short")
	}
	s := &SRK{Handle: binary.BigEndian.Uint32(data)}
	name, rest, err := cutSized(data[4:])
	if err != nil || len(rest) < 4 {
		return nil, malformed("tpm2_srk has no name")
	}
	kind := binary.BigEndian.Uint32(rest)
	public, rest, err := cutSized(rest[4:])
	if err != nil || len(rest) != 0 || kind != resourceKey {
		return nil, malformed("tpm2_srk has no key")
	}
	s.Name, s.Public = name, public
	return s, s.check()
}

func (s *SRK) check() error {
	if s.Handle < firstPersistent || s.Handle > lastPersistent {
		return malformed("tpm2_srk names %#x, which is no persistent handle", s.Handle)
	}
	name, err := nameOf(s.Public)
	if err != nil || !bytes.Equal(name, s.Name) {
		return malformed("tpm2_srk has a name that is not that of its key")
	}
	return nil
}

// nameOf computes the Name of an object from its TPMT_PUBLIC (TPM 2.0 Library,
// Part 1, "Names").
func nameOf(public []byte) ([]byte, error) {
	if len(public) < 4 {
		return nil, fmt.Errorf("public area of %d bytes is too short", len(public))
	}
	algorithm := tpm2.TPMIAlgHash(binary.BigEndian.Uint16(public[2:]))
	hash, err := algorithm.Hash()
	if err != nil {
		return nil, err
	}
	digest := hash.New()
	digest.Write(public)
	return digest.Sum(binary.BigEndian.AppendUint16(nil, uint16(algorithm))), nil
}

// parent is a storage key in the TPM.
type parent struct {
	handle tpm2.TPMHandle
	name   []byte
	raw    []byte // TPMT_PUBLIC
	public *tpm2.TPMTPublic
}

func newParent(handle tpm2.TPMHandle, raw []byte) (*parent, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](raw)
	if err != nil {
		return nil, fmt.Errorf("TPM gave a malformed public area: %w: %w", ErrFailed, err)
	}
	// Computed, not taken from the response: who sits between could tell any Name.
	name, err := nameOf(raw)
	if err != nil {
		return nil, fmt.Errorf("TPM gave a malformed public area: %w: %w", ErrFailed, err)
	}
	return &parent{handle, name, raw, public}, nil
}

// named is the handle for go-tpm.
func (p *parent) named() tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: p.handle, Name: tpm2.TPM2BName{Buffer: p.name}}
}

// algorithm is the kind of key as tokens name it.
func (p *parent) algorithm() string {
	if p.public.Type == tpm2.TPMAlgRSA {
		return "rsa"
	}
	return "ecc"
}

// readParent reads the persistent key at handle; nil if there is none.
func (b bus) readParent(handle tpm2.TPMHandle) (*parent, error) {
	read, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(b)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, failure(fmt.Sprintf("read the key at %#x", uint32(handle)), err)
	}
	return newParent(handle, read.OutPublic.Bytes())
}

// pinnedParent gives the key that a token names, and only that one.
func (b bus) pinnedParent(srk *SRK) (*parent, error) {
	found, err := b.readParent(tpm2.TPMHandle(srk.Handle))
	switch {
	case err != nil:
		return nil, err
	case found == nil:
		return nil, fmt.Errorf("TPM has no key at %#x: %w", srk.Handle, ErrSRKMismatch)
	case !bytes.Equal(found.name, srk.Name):
		return nil, fmt.Errorf("key at %#x has name %x instead of %x: %w",
			srk.Handle, found.name, srk.Name, ErrSRKMismatch)
	}
	return found, nil
}

// CheckSRK tells whether the TPM still has the storage root key that the token names, without unsealing. It fails with
// [ErrSRKMismatch] where the TPM was cleared or replaced. A token of systemd up to 253 names none.
func (d *Device) CheckSRK(ctx context.Context, t *Token) error {
	if t.SRK == nil {
		return nil
	}
	tpm, end := d.begin(ctx)
	defer end()
	_, err := tpm.pinnedParent(t.SRK)
	return err
}

// ensureSRK gives the shared storage root key, and makes it if its handle is
// empty, as systemd does (src/shared/tpm2-util.c, tpm2_get_or_create_srk). What
// is there is never evicted: the keys of others hang on it.
func (b bus) ensureSRK() (*parent, error) {
	found, err := b.readParent(srkHandle)
	if err != nil {
		return nil, err
	}
	if found == nil {
		if err := b.persistSRK(); err != nil {
			return nil, err
		}
		if found, err = b.readParent(srkHandle); err != nil {
			return nil, err
		}
	}
	if found == nil || !isStorageKey(found.public) {
		return nil, fmt.Errorf("object at %#x is no storage root key: %w", uint32(srkHandle), ErrSRKForeign)
	}
	return found, nil
}

func (b bus) persistSRK() error {
	primary, err := b.createPrimary(templateECC(true))
	if err != nil {
		return err
	}
	defer b.flush(primary.handle)
	_, err = tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     primary.named(),
		PersistentHandle: srkHandle,
	}.Execute(b)
	if err != nil {
		return failure(fmt.Sprintf("keep the storage root key at %#x", uint32(srkHandle)), err)
	}
	return nil
}

// legacyParent makes the transient primary key under which systemd up to 253
// sealed. The caller flushes it.
func (b bus) legacyParent(algorithm string) (*parent, error) {
	if algorithm == "rsa" {
		return b.createPrimary(templateRSA())
	}
	return b.createPrimary(templateECC(false))
}

func (b bus) createPrimary(template tpm2.TPMTPublic) (*parent, error) {
	created, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(b)
	if err != nil {
		return nil, failure("make a primary key", err)
	}
	primary, err := newParent(created.ObjectHandle, created.OutPublic.Bytes())
	if err != nil {
		b.flush(created.ObjectHandle)
	}
	return primary, err
}

// isStorageKey tells whether objects can be sealed under the key as under
// systemd's: restricted, decrypting, without authorisation, bound to this TPM.
func isStorageKey(public *tpm2.TPMTPublic) bool {
	a := public.ObjectAttributes
	right := a.Restricted && a.Decrypt && !a.SignEncrypt && a.FixedTPM && a.FixedParent && a.UserWithAuth
	return right && (public.Type == tpm2.TPMAlgECC || public.Type == tpm2.TPMAlgRSA)
}

// templateECC is systemd's template, with noDA since version 254. Other than in
// the TCG's, the unique field is empty, and so the key is another one
// (src/shared/tpm2-util.c, tpm2_get_srk_template and tpm2_get_legacy_template).
func templateECC(noDA bool) tpm2.TPMTPublic {
	return template(tpm2.TPMAlgECC, noDA,
		tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC,
			&tpm2.TPMSECCParms{Symmetric: storageCipher(), CurveID: tpm2.TPMECCNistP256}),
		tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}))
}

// templateRSA is systemd's template for TPMs without the curve, up to version 253.
func templateRSA() tpm2.TPMTPublic {
	return template(tpm2.TPMAlgRSA, false,
		tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: storageCipher(), KeyBits: 2048}),
		tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}))
}

func template(
	kind tpm2.TPMIAlgPublic, noDA bool, parameters tpm2.TPMUPublicParms, unique tpm2.TPMUPublicID,
) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    kind,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, Restricted: true, Decrypt: true, NoDA: noDA,
		},
		Parameters: parameters,
		Unique:     unique,
	}
}

func storageCipher() tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}
