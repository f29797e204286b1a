package tpm2

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// Signatures are PCR policies that somebody signed, to be accepted for tokens
// with the public key of the same. They come with a kernel image and need not
// be trusted before they are verified.
type Signatures struct {
	banks map[Bank][]signature
}

// signature says that the holder of a key accepts a PCR policy.
type signature struct {
	// PCRs that the policy takes.
	PCRs pcrList `json:"pcrs"`
	// Fingerprint is the SHA-256 of the public key in PKCS#1 form.
	Fingerprint hexadecimal `json:"pkfp"`
	// Policy is the digest of PolicyPCR alone.
	Policy hexadecimal `json:"pol"`
	// Ref is the policy reference, since systemd 262 (systemd-measure --policyref=).
	Ref string `json:"ref"`
	// Signature is RSASSA-PKCS1-v1_5 with SHA-256 over the policy with the hash of the reference behind it.
	Signature encoded `json:"sig"`
}

// hexadecimal is bytes in hexadecimal.
type hexadecimal []byte

// UnmarshalJSON implements [json.Unmarshaler].
func (h *hexadecimal) UnmarshalJSON(raw []byte) error {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return err
	}
	decoded, err := hex.DecodeString(text)
	*h = decoded
	return err
}

// pcrList is a set of PCRs as a mask, since their order does not count.
type pcrList uint32

// UnmarshalJSON implements [json.Unmarshaler].
func (l *pcrList) UnmarshalJSON(raw []byte) error {
	var pcrs []int
	if err := json.Unmarshal(raw, &pcrs); err != nil {
		return err
	}
	*l = maskOf(pcrs)
	return checkPCRs(pcrs)
}

func maskOf(pcrs []int) (mask pcrList) {
	for _, pcr := range pcrs {
		mask |= 1 << (uint(pcr) & 31) // beyond the highest, checkPCRs refuses it
	}
	return mask
}

// ParseSignatures reads the JSON object that systemd-measure(1) writes and
// systemd-stub(7) hands over as /run/systemd/tpm2-pcr-signature.json:
//
//	{"sha256": [{"pcrs": [11], "pkfp": "hex", "pol": "hex", "sig": "base64"}]}
//
// Like systemd (src/shared/tpm2-util.c, find_signature) it ignores banks and
// members that it does not know. What is malformed is [ErrSignature].
func ParseSignatures(data []byte) (*Signatures, error) {
	var banks map[string]json.RawMessage
	if err := json.Unmarshal(data, &banks); err != nil || banks == nil {
		return nil, fmt.Errorf("cannot read PCR signatures: %w: not a JSON object", ErrSignature)
	}
	s := &Signatures{banks: map[Bank][]signature{}}
	for _, bank := range []Bank{SHA1, SHA256, SHA384, SHA512} {
		if banks[string(bank)] == nil {
			continue
		}
		var entries []signature
		if err := json.Unmarshal(banks[string(bank)], &entries); err != nil {
			return nil, fmt.Errorf("cannot read PCR signatures: %w: bank %s: %w", ErrSignature, bank, err)
		}
		s.banks[bank] = entries
	}
	return s, nil
}

// verified finds the signature by which the policy's signer accepts digest, the
// PolicyPCR of its signed PCRs as they are. That he accepts others is a
// [*PolicyError], that he says nothing about these PCRs [ErrSignature].
func (s *Signatures) verified(p Policy, digest []byte) ([]byte, error) {
	fingerprint := sha256.Sum256(x509.MarshalPKCS1PublicKey(p.Signer))
	var others [][]byte
	var forged error
	for _, entry := range s.banks[p.Bank] {
		if entry.PCRs != maskOf(p.SignedPCRs) || entry.Ref != p.Ref || !bytes.Equal(entry.Fingerprint, fingerprint[:]) {
			continue
		}
		if !bytes.Equal(entry.Policy, digest) {
			others = append(others, entry.Policy)
			continue
		}
		if forged = verify(p, digest, entry.Signature); forged == nil {
			return entry.Signature, nil
		}
	}
	switch {
	case forged != nil:
		return nil, fmt.Errorf("%w: that of policy %x is not by key %x: %w", ErrSignature, digest, fingerprint, forged)
	case len(others) > 0:
		return nil, &PolicyError{Bank: p.Bank, PCRs: p.SignedPCRs, Signed: others, Got: digest}
	}
	return nil, fmt.Errorf("%w: none by key %x over PCRs %v of bank %s%s", ErrSignature, fingerprint, p.SignedPCRs, p.Bank, p.forRef())
}

func verify(p Policy, policy, signature []byte) error {
	digest := p.signedDigest(policy)
	return rsa.VerifyPKCS1v15(p.Signer, crypto.SHA256, digest[:], signature)
}

// forRef names the reference in messages.
func (p Policy) forRef() string {
	if p.Ref == "" {
		return ""
	}
	return fmt.Sprintf(" for reference %q", p.Ref)
}

// signedDigest is what the signer signs of a policy (TPM 2.0 Library, Part 3, TPM2_PolicyAuthorize, aHash).
func (p Policy) signedDigest(policy []byte) [sha256.Size]byte {
	return sha256.Sum256(slices.Concat(policy, p.ref().Buffer))
}

// parseSigner reads the public key of a token, a PEM text. systemd knows only RSA
// there (src/shared/tpm2-util.c, tpm2_policy_authorize, which builds an RSASSA signature).
func parseSigner(text []byte) (*rsa.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, malformed("tpm2_pubkey is not in PEM form")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, malformed("tpm2_pubkey: %w", err)
	}
	signer, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("PCR policy signed with a key other than RSA: %w", ErrUnsupported)
	}
	return signer, nil
}

// signerTemplate is the signer's key as systemd loads it, on which its Name
// depends (src/shared/tpm2-util.c, tpm2_tpm2b_public_from_openssl_pkey).
func signerTemplate(signer *rsa.PublicKey) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgRSA,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{Decrypt: true, SignEncrypt: true, UserWithAuth: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			KeyBits:  tpm2.TPMKeyBits(signer.N.BitLen()),
			Exponent: uint32(signer.E),
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: signer.N.Bytes()}),
	}
}

// signerName is the Name of the signer's key, which the policy holds.
func signerName(signer *rsa.PublicKey) ([]byte, error) {
	return nameOf(tpm2.Marshal(signerTemplate(signer)))
}

// authorize has the TPM accept the session's policy digest, that of the signed
// PCRs as they are, because the signer does.
func (b bus) authorize(session tpm2.TPMHandle, policy Policy, signatures *Signatures) error {
	got, err := tpm2.PolicyGetDigest{PolicySession: session}.Execute(b)
	if err != nil {
		return err
	}
	signed, err := signatures.verified(policy, got.PolicyDigest.Buffer)
	if err != nil {
		return err
	}
	name, err := signerName(policy.Signer)
	if err != nil {
		return err
	}
	ticket, err := b.verifySignature(policy, got.PolicyDigest.Buffer, signed)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession:  session,
		ApprovedPolicy: got.PolicyDigest,
		PolicyRef:      policy.ref(),
		KeySign:        tpm2.TPM2BName{Buffer: name},
		CheckTicket:    *ticket,
	}.Execute(b)
	return err
}

// verifySignature gives the TPM's ticket that the signer signed the policy's digest.
func (b bus) verifySignature(policy Policy, approved, signed []byte) (*tpm2.TPMTTKVerified, error) {
	key, err := tpm2.LoadExternal{
		InPublic:  tpm2.New2B(signerTemplate(policy.Signer)),
		Hierarchy: tpm2.TPMRHOwner,
	}.Execute(b)
	if err != nil {
		return nil, err
	}
	defer b.flush(key.ObjectHandle)
	digest := policy.signedDigest(approved)
	verified, err := tpm2.VerifySignature{
		KeyHandle: key.ObjectHandle,
		Digest:    tpm2.TPM2BDigest{Buffer: digest[:]},
		Signature: tpm2.TPMTSignature{
			SigAlg: tpm2.TPMAlgRSASSA,
			Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{
				Hash: tpm2.TPMAlgSHA256,
				Sig:  tpm2.TPM2BPublicKeyRSA{Buffer: signed},
			}),
		},
	}.Execute(b)
	if err != nil {
		return nil, err
	}
	return &verified.Validation, nil
}
