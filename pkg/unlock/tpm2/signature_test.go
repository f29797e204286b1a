package tpm2

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/test/swtpm"
)

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func ecPublic(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf(must(x509.MarshalPKIXPublicKey(key.Public())))
}

func newSigner(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	signer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func signerPEM(signer *rsa.PrivateKey) []byte {
	return pemOf(must(x509.MarshalPKIXPublicKey(signer.Public())))
}

// entry is a signature in systemd's JSON form (src/measure/measure.c, verb_sign).
type entry struct {
	PCRs        []int  `json:"pcrs"`
	Fingerprint string `json:"pkfp"`
	Ref         string `json:"ref,omitempty"`
	Policy      string `json:"pol"`
	Signature   string `json:"sig"`
}

// sign makes the signature for PCRs that have these values.
func sign(t testing.TB, signer *rsa.PrivateKey, bank Bank, pcrs []int, values map[int][]byte) entry {
	t.Helper()
	policy, err := Policy{Bank: bank, PCRs: pcrs}.Digest(values)
	if err != nil {
		t.Fatal(err)
	}
	return signPolicy(t, signer, pcrs, policy, nil)
}

// signReferring signs the value of PCR 11 for a policy reference, as systemd-measure 262 does.
func signReferring(t testing.TB, signer *rsa.PrivateKey, ref string, values map[int][]byte) entry {
	t.Helper()
	if ref == "" {
		return sign(t, signer, SHA256, []int{11}, values)
	}
	policy, err := Policy{Bank: SHA256, PCRs: []int{11}}.Digest(values)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(ref))
	e := signPolicy(t, signer, []int{11}, policy, digest[:])
	e.Ref = ref
	return e
}

func signPolicy(t testing.TB, signer *rsa.PrivateKey, pcrs []int, policy, ref []byte) entry {
	t.Helper()
	digest := sha256.Sum256(slices.Concat(policy, ref))
	signed, err := rsa.SignPKCS1v15(rand.Reader, signer, crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	fingerprint := sha256.Sum256(x509.MarshalPKCS1PublicKey(&signer.PublicKey))
	return entry{
		PCRs: pcrs, Fingerprint: hex.EncodeToString(fingerprint[:]),
		Policy: hex.EncodeToString(policy), Signature: base64.StdEncoding.EncodeToString(signed),
	}
}

func signaturesJSON(bank Bank, entries ...entry) []byte {
	return must(json.Marshal(map[Bank][]entry{bank: entries}))
}

func parsed(t *testing.T, bank Bank, entries ...entry) *Signatures {
	t.Helper()
	signatures, err := ParseSignatures(signaturesJSON(bank, entries...))
	if err != nil {
		t.Fatal(err)
	}
	return signatures
}

// sealSigned seals under a signed policy, besides literal PCRs and a PIN.
func sealSigned(t *testing.T, s *swtpm.TPM, signer *rsa.PrivateKey, signedPCRs []int, key *secret.Key, opts SealOptions) *Token {
	t.Helper()
	return sealSignedAs(t, s, signer, signedPCRs, key, opts, "")
}

func sealSignedAs(
	t *testing.T, s *swtpm.TPM, signer *rsa.PrivateKey, signedPCRs []int, key *secret.Key, opts SealOptions, ref string,
) *Token {
	t.Helper()
	return craft(t, s, func(tpm bus) (*Token, error) {
		token, err := tpm.newToken(opts)
		if err != nil {
			return nil, err
		}
		token.Pubkey, token.PubkeyPCRs, token.PubkeyRef, token.Bank = signerPEM(signer), signedPCRs, ref, opts.Bank
		values, err := tpm.readPCRs(SHA256, token.PCRs)
		if len(token.PCRs) > 0 && err != nil {
			return nil, err
		}
		token.PolicyHash = must(must(token.Policy()).Digest(values))
		srk, err := tpm.ensureSRK()
		if err != nil {
			return nil, err
		}
		token.SRK = &SRK{Handle: uint32(srk.handle), Name: srk.name, Public: srk.raw}
		return token, tpm.sealTo(token, srk, key, opts.PIN)
	})
}

func TestSignedPolicy(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	signer, pin := newSigner(t), newPIN(t, "1234")
	for name, opts := range map[string]SealOptions{
		"alone":       {Bank: SHA256},
		"with PCRs":   {Bank: SHA256, PCRs: []int{7}},
		"with PIN":    {Bank: SHA256, PIN: pin},
		"with both":   {Bank: SHA256, PCRs: []int{7}, PIN: pin},
		"and no bank": {},
	} {
		t.Run(name, func(t *testing.T) {
			key := newKey(t)
			token := sealSigned(t, s, signer, []int{11, 12}, key, opts)
			now := readPCRs(t, s, SHA256, []int{7, 11, 12})
			signatures := parsed(t, SHA256, sign(t, signer, SHA256, []int{11, 12}, now))
			wantKeyWith(t, s, token, UnsealOptions{PIN: opts.PIN, Signatures: signatures}, key)
			if same, err := token.PolicyMatches(now, signatures); !same || err != nil {
				t.Errorf("PolicyMatches = %v, %v for what was just unsealed", same, err)
			}
			wantNoHandles(t, s)
		})
	}
}

// A kernel that was signed after the key was sealed unseals it too: that is what signed policies are for.
func TestSignedPolicyFollowsUpdates(t *testing.T) {
	s := swtpm.Start(t)
	signer, key := newSigner(t), newKey(t)
	token := sealSigned(t, s, signer, []int{11}, key, SealOptions{Bank: SHA256})
	old := sign(t, signer, SHA256, []int{11}, readPCRs(t, s, SHA256, []int{11}))
	s.Extend(11, "new kernel")
	now := readPCRs(t, s, SHA256, []int{11})
	_, err := unsealWith(t, s, token, UnsealOptions{Signatures: parsed(t, SHA256, old)})
	wantClass(t, err, ErrPolicy)
	var mismatch *PolicyError
	if !errors.As(err, &mismatch) || len(mismatch.Signed) != 1 || !bytes.Equal(mismatch.Values[11], now[11]) {
		t.Errorf("error is %#v, want a PolicyError with the signed policy and the values", err)
	}
	if same, err := token.PolicyMatches(now, parsed(t, SHA256, old)); same || err != nil {
		t.Errorf("PolicyMatches with an old signature = %v, %v", same, err)
	}
	both := parsed(t, SHA256, old, sign(t, signer, SHA256, []int{11}, now))
	wantKeyWith(t, s, token, UnsealOptions{Signatures: both}, key)
	wantNoHandles(t, s)
}

func TestSignedPolicyRefuses(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	signer, other := newSigner(t), newSigner(t)
	token := sealSigned(t, s, signer, []int{11}, newKey(t), SealOptions{Bank: SHA256, PCRs: []int{7}})
	now := readPCRs(t, s, SHA256, []int{7, 11, 12})
	good := sign(t, signer, SHA256, []int{11}, now)
	forged, cut := good, good
	forged.Signature = sign(t, other, SHA256, []int{11}, now).Signature
	cut.Signature = base64.StdEncoding.EncodeToString([]byte("signature"))
	for name, signatures := range map[string]*Signatures{
		"nothing":           parsed(t, SHA256),
		"another bank":      parsed(t, SHA1, good),
		"another signer":    parsed(t, SHA256, sign(t, other, SHA256, []int{11}, now)),
		"other PCRs":        parsed(t, SHA256, sign(t, signer, SHA256, []int{11, 12}, now)),
		"a forged one":      parsed(t, SHA256, forged),
		"one cut short":     parsed(t, SHA256, cut),
		"an entry of blank": parsed(t, SHA256, entry{}),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := unsealWith(t, s, token, UnsealOptions{Signatures: signatures})
			wantClass(t, err, ErrSignature)
			same, err := token.PolicyMatches(now, signatures)
			if same {
				t.Error("PolicyMatches says that it matches")
			}
			wantClass(t, err, ErrSignature)
			wantNoHandles(t, s)
		})
	}
	_, err := token.PolicyMatches(now, nil)
	wantClass(t, err, ErrSignature)
	// The bad ones do not stand in the way of a good one, and the literal PCRs count as well.
	signatures := parsed(t, SHA256, forged, cut, good)
	if same, err := token.PolicyMatches(now, signatures); !same || err != nil {
		t.Errorf("PolicyMatches = %v, %v", same, err)
	}
	s.Extend(7, "more")
	_, err = unsealWith(t, s, token, UnsealOptions{Signatures: signatures})
	wantClass(t, err, ErrPolicy)
	var mismatch *PolicyError
	if !errors.As(err, &mismatch) || !slices.Equal(mismatch.PCRs, []int{7}) {
		t.Errorf("error is %v, want it to name PCR 7", err)
	}
}

// A signature for a reference is good for tokens with the same one, and for no other (systemd 262).
func TestSignedPolicyWithReference(t *testing.T) {
	s := swtpm.Start(t)
	signer, key := newSigner(t), newKey(t)
	tokens, signatures := map[string]*Token{}, map[string]*Signatures{}
	now := readPCRs(t, s, SHA256, []int{11})
	for _, ref := range []string{"", "initrd", "other"} {
		tokens[ref] = sealSignedAs(t, s, signer, []int{11}, key, SealOptions{Bank: SHA256}, ref)
		signatures[ref] = parsed(t, SHA256, signReferring(t, signer, ref, now))
	}
	for ref, token := range tokens {
		wantKeyWith(t, s, token, UnsealOptions{Signatures: signatures[ref]}, key)
		for signed, others := range signatures {
			if same, err := token.PolicyMatches(now, others); same != (signed == ref) {
				t.Errorf("reference %q, signature for %q: PolicyMatches = %v, %v", ref, signed, same, err)
			}
			if signed == ref {
				continue
			}
			_, err := unsealWith(t, s, token, UnsealOptions{Signatures: others})
			wantClass(t, err, ErrSignature)
		}
		// One that only claims the reference.
		claimed := signReferring(t, signer, ref+"x", now)
		claimed.Ref = ref
		_, err := unsealWith(t, s, token, UnsealOptions{Signatures: parsed(t, SHA256, claimed)})
		wantClass(t, err, ErrSignature)
	}
	wantNoHandles(t, s)
	_, err := must(ParseToken(edit(t, sample(t, "systemd257-none"), map[string]any{"tpm2_pubkey_ref": "initrd"}))).Policy()
	wantClass(t, err, ErrToken)
}

// A token that names no bank means the best that the TPM has; one that names a bank means that one.
func TestSignedPolicyWithoutItsBank(t *testing.T) {
	s := swtpm.Start(t)
	signer, key := newSigner(t), newKey(t)
	unnamed := sealSigned(t, s, signer, []int{11}, key, SealOptions{})
	named := sealSigned(t, s, signer, []int{11}, key, SealOptions{Bank: SHA256})
	signed := sign(t, signer, SHA256, []int{11}, readPCRs(t, s, SHA256, []int{11}))
	s.Deallocate(tpm2.TPMAlgSHA256)
	now := readPCRs(t, s, SHA1, []int{11})
	wantKeyWith(t, s, unnamed, UnsealOptions{Signatures: parsed(t, SHA1, sign(t, signer, SHA1, []int{11}, now))}, key)
	for token, want := range map[*Token]Bank{unnamed: SHA1, named: SHA256} {
		policy, err := with(t, s, func(d *Device) (Policy, error) { return d.PolicyOf(t.Context(), token) })
		if err != nil || policy.Bank != want {
			t.Errorf("bank %s, %v, want %s", policy.Bank, err, want)
		}
	}
	_, err := unsealWith(t, s, unnamed, UnsealOptions{Signatures: parsed(t, SHA256, signed)})
	wantClass(t, err, ErrSignature)
	_, err = unsealWith(t, s, named, UnsealOptions{Signatures: parsed(t, SHA256, signed)})
	wantClass(t, err, ErrBankUnavailable)
	wantNoHandles(t, s)
}

// fault 42: a PCR is extended between policy and unseal, also under a signed policy.
func TestSignedPolicyWhilePCRsChange(t *testing.T) {
	s := swtpm.Start(t)
	signer, key := newSigner(t), newKey(t)
	token := sealSigned(t, s, signer, []int{11}, key, SealOptions{Bank: SHA256})
	signatures := parsed(t, SHA256, sign(t, signer, SHA256, []int{11}, readPCRs(t, s, SHA256, []int{11})))
	d := open(t, s.TCTI())
	left := 2
	wire := d.stream
	d.stream = &interposer{stream: wire, onWrite: func(command []byte) []byte {
		if commandCode(command) == tpm2.TPMCCUnseal && left > 0 {
			left--
			extend(t, wire, 10)
		}
		return nil
	}}
	got, err := d.UnsealWith(t.Context(), token, UnsealOptions{Signatures: signatures})
	if err != nil || left != 0 || !bytes.Equal(got.Bytes(), key.Bytes()) {
		t.Errorf("Unseal while PCR 10 changes: %v, %d changes left", err, left)
	}
	got.Wipe()
	d.Close()
	wantNoHandles(t, s)
}

func TestParseSignaturesRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":             ``,
		"null":                `null`,
		"an array":            `[]`,
		"something more":      `{} {}`,
		"bank no array":       `{"sha256": {}}`,
		"entry no object":     `{"sha256": [1]}`,
		"PCR out of range":    `{"sha256": [{"pcrs": [24]}]}`,
		"PCR negative":        `{"sha256": [{"pcrs": [-1]}]}`,
		"PCR enormous":        `{"sha256": [{"pcrs": [1099511627776]}]}`,
		"PCR twice":           `{"sha256": [{"pcrs": [7, 7]}]}`,
		"PCRs a string":       `{"sha256": [{"pcrs": "7"}]}`,
		"key not hexadecimal": `{"sha256": [{"pkfp": "x"}]}`,
		"policy a number":     `{"sha256": [{"pol": 1}]}`,
		"signature no base64": `{"sha256": [{"sig": "!"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseSignatures([]byte(text))
			wantClass(t, err, ErrSignature)
		})
	}
	for _, text := range []string{
		`{}`, `{"sha256": []}`, `{"sm3_256": 1}`, `{"sha256": [{"future": 1}]}`, ` {"sha1": null} `,
	} {
		if _, err := ParseSignatures([]byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Whatever is read, only a signature by the signer over the very policy is found in it.
func FuzzParseSignatures(f *testing.F) {
	signer := newSigner(f)
	zero := map[int][]byte{11: make([]byte, 32), 12: make([]byte, 32)}
	good := sign(f, signer, SHA256, []int{11}, zero)
	f.Add(signaturesJSON(SHA256, good), []byte("policy"))
	f.Add(signaturesJSON(SHA1, good, entry{}), must(hex.DecodeString(good.Policy)))
	f.Add([]byte(`{"sha256":[{"pcrs":[11],"pkfp":"00","pol":"","sig":""}],"md5":1}`), []byte{})
	f.Add([]byte(strings.Repeat(`{"sha256":[`, 8)), []byte{})
	f.Fuzz(func(t *testing.T, data, policy []byte) {
		signatures, err := ParseSignatures(data)
		if err != nil {
			wantClass(t, err, ErrSignature)
			return
		}
		asked := Policy{Bank: SHA256, SignedPCRs: []int{11}, Signer: &signer.PublicKey}
		signed, err := signatures.verified(asked, policy)
		switch {
		case err == nil && verify(asked, policy, signed) != nil:
			t.Errorf("accepted %x for %x", signed, policy)
		case err != nil && !errors.Is(err, ErrSignature) && !errors.Is(err, ErrPolicy):
			t.Errorf("error of no class: %v", err)
		}
	})
}

// The key's text comes from the disk too.
func FuzzParseSigner(f *testing.F) {
	f.Add(must(ParseToken(sample(f, "systemd257-signed"))).Pubkey)
	f.Add(pemOf([]byte{0x30, 0x03}))
	f.Fuzz(func(t *testing.T, text []byte) {
		signer, err := parseSigner(text)
		if err != nil {
			if !errors.Is(err, ErrToken) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("error of no class: %v", err)
			}
			return
		}
		if _, err := signerName(signer); err != nil {
			t.Errorf("key of %d bits has no name: %v", signer.N.BitLen(), err)
		}
	})
}
