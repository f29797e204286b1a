package tpm2

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"luksmediad/pkg/unlock/secret"
)

// policySession is a policy session that is salted, encrypts responses and
// proves an authorisation value. go-tpm has the like, but up to version 0.9.8 cuts
// the value at its first zero byte instead of its last ones (tpm2/sessions.go,
// hmacKeyFromAuthValue), which fails one right PIN in eight, and keeps it on the heap.
type policySession struct {
	handle                tpm2.TPMHandle
	nonceCaller, nonceTPM []byte
	// key is the session key and, behind it, the authorisation value.
	key *secret.Key
}

var _ tpm2.Session = (*policySession)(nil)

// startPolicy opens the session. auth is nil where the policy asks for no value.
func (b bus) startPolicy(salt *parent, auth *secret.Key) (*policySession, error) {
	encapsulation, err := tpm2.ImportEncapsulationKey(salt.public)
	if err != nil {
		return nil, err
	}
	plain, encrypted, err := tpm2.CreateEncryptedSalt(rand.Reader, encapsulation)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	s := &policySession{nonceCaller: make([]byte, nonceSize)}
	if err := s.NewNonceCaller(); err != nil {
		return nil, err
	}
	started, err := tpm2.StartAuthSession{
		TPMKey:        salt.handle,
		Bind:          tpm2.TPMRHNull,
		NonceCaller:   tpm2.TPM2BNonce{Buffer: s.nonceCaller},
		EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
		SessionType:   tpm2.TPMSEPolicy,
		Symmetric:     sessionCipher(),
		AuthHash:      tpm2.TPMAlgSHA256,
	}.Execute(b)
	if err != nil {
		return nil, err
	}
	s.handle, s.nonceTPM = tpm2.TPMHandle(started.SessionHandle.HandleValue()), started.NonceTPM.Buffer
	if err := s.setKey(plain, auth); err != nil {
		b.flush(s.handle)
		return nil, err
	}
	return s, nil
}

// setKey derives the session key (TPM 2.0 Library, Part 1, "sessionKey Creation").
func (s *policySession) setKey(salt []byte, auth *secret.Key) (err error) {
	derived := tpm2.KDFa(crypto.SHA256, salt, "ATH", s.nonceTPM, s.nonceCaller, digestSize*8)
	defer clear(derived)
	if s.key, err = secret.New(len(derived) + auth.Len()); err != nil {
		return err
	}
	copy(s.key.Bytes()[copy(s.key.Bytes(), derived):], auth.Bytes())
	return nil
}

func sessionCipher() tpm2.TPMTSymDef {
	return tpm2.TPMTSymDef{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(sessionKeyBits)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

// Init implements [tpm2.Session]: the session is open already.
func (s *policySession) Init(transport.TPM) error { return nil }

// CleanupFailure implements [tpm2.Session]: who opened the session closes it.
func (s *policySession) CleanupFailure(transport.TPM) error { return nil }

// NonceTPM implements [tpm2.Session].
func (s *policySession) NonceTPM() tpm2.TPM2BNonce { return tpm2.TPM2BNonce{Buffer: s.nonceTPM} }

// NewNonceCaller implements [tpm2.Session].
func (s *policySession) NewNonceCaller() error {
	_, err := rand.Read(s.nonceCaller)
	return err
}

// Handle implements [tpm2.Session].
func (s *policySession) Handle() tpm2.TPMHandle { return s.handle }

// IsEncryption implements [tpm2.Session]: responses are encrypted.
func (s *policySession) IsEncryption() bool { return true }

// IsDecryption implements [tpm2.Session]: commands are not.
func (s *policySession) IsDecryption() bool { return false }

// Encrypt implements [tpm2.Session].
func (s *policySession) Encrypt([]byte) error { return nil }

// Decrypt implements [tpm2.Session] (TPM 2.0 Library, Part 1, "Session-based
// encryption").
func (s *policySession) Decrypt(parameter []byte) error {
	const keySize = sessionKeyBits / 8
	derived := tpm2.KDFa(crypto.SHA256, s.key.Bytes(), "CFB", s.nonceTPM, s.nonceCaller, (keySize+aes.BlockSize)*8)
	defer clear(derived)
	block, err := aes.NewCipher(derived[:keySize])
	if err != nil {
		return err
	}
	// CFB authenticates nothing, which is why Validate comes first; the TPM offers no other mode.
	//nolint:staticcheck // see above
	cipher.NewCFBDecrypter(block, derived[keySize:]).XORKeyStream(parameter, parameter)
	return nil
}

// Authorize implements [tpm2.Session] (TPM 2.0 Library, Part 1, "HMAC Computation").
func (s *policySession) Authorize(
	code tpm2.TPMCC, parameters, addNonces []byte, names []tpm2.TPM2BName, _ int,
) (*tpm2.TPMSAuthCommand, error) {
	hash := sha256.New()
	hash.Write(binary.BigEndian.AppendUint32(nil, uint32(code)))
	for _, name := range names {
		hash.Write(name.Buffer)
	}
	hash.Write(parameters)
	attributes := tpm2.TPMASession{ContinueSession: true, Encrypt: true}
	return &tpm2.TPMSAuthCommand{
		Handle:     s.handle,
		Nonce:      tpm2.TPM2BNonce{Buffer: s.nonceCaller},
		Attributes: attributes,
		Authorization: tpm2.TPM2BData{
			Buffer: s.mac(hash.Sum(nil), s.nonceCaller, s.nonceTPM, addNonces, tpm2.Marshal(attributes)),
		},
	}, nil
}

// Validate implements [tpm2.Session].
func (s *policySession) Validate(
	result tpm2.TPMRC, code tpm2.TPMCC, parameters []byte, _ []tpm2.TPM2BName, _ int, auth *tpm2.TPMSAuthResponse,
) error {
	s.nonceTPM = auth.Nonce.Buffer
	hash := sha256.New()
	hash.Write(binary.BigEndian.AppendUint32(nil, uint32(result)))
	hash.Write(binary.BigEndian.AppendUint32(nil, uint32(code)))
	hash.Write(parameters)
	want := s.mac(hash.Sum(nil), s.nonceTPM, s.nonceCaller, tpm2.Marshal(auth.Attributes))
	if !hmac.Equal(want, auth.Authorization.Buffer) {
		return errors.New("response is not authenticated by the session")
	}
	return nil
}

func (s *policySession) mac(parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, s.key.Bytes())
	for _, part := range parts {
		mac.Write(part)
	}
	return mac.Sum(nil)
}
