package tpm2

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"luksmediad/pkg/unlock/secret"
)

const (
	// nonceSize is that of the session hash, the most the TPM takes.
	nonceSize = digestSize
	// sessionKeyBits is the AES key size that every TPM has (TCG PC Client Platform TPM Profile).
	sessionKeyBits = 128
)

// Sessions are opened and flushed here by hand: those that go-tpm opens just in
// time stay in the TPM when a step before their use fails.

// authSession opens a session that authorizes the use of a key without a
// password and encrypts what goes in and comes out. The key makes the session
// secret: without salt it would be encrypted under an empty key.
func (b bus) authSession(salt *parent) (session tpm2.Session, end func(), err error) {
	s, _, err := tpm2.HMACSession(b, tpm2.TPMAlgSHA256, nonceSize,
		tpm2.Salted(salt.handle, *salt.public), tpm2.AESEncryption(sessionKeyBits, tpm2.EncryptInOut))
	if err != nil {
		return nil, nil, failure("open a session", err)
	}
	return s, func() { b.flush(s.Handle()) }, nil
}

// policySession opens a session that satisfies the policy and encrypts what comes out.
func (b bus) policySession(salt *parent, policy proof) (session tpm2.Session, end func(), err error) {
	s, err := b.startPolicy(salt, policy.auth)
	if err != nil {
		return nil, nil, failure("open a policy session", err)
	}
	end = func() {
		s.key.Wipe()
		b.flush(s.handle)
	}
	if err := policy.satisfy(b, s.handle); err != nil {
		end()
		return nil, nil, failure("satisfy the policy", err)
	}
	return s, end, nil
}

// sealing puts the key into the command at the last moment, where go-tpm is
// about to encrypt it in place, so that it is nowhere on the heap in clear.
type sealing struct {
	tpm2.Session
	key, auth *secret.Key
}

// Encrypt implements [tpm2.Session]. The parameter is a TPMS_SENSITIVE_CREATE:
// the authorisation value behind its size, and at the end the data, both zeros
// so far.
func (s sealing) Encrypt(parameter []byte) error {
	copy(parameter[2:], s.auth.Bytes())
	copy(parameter[len(parameter)-s.key.Len():], s.key.Bytes())
	err := s.Session.Encrypt(parameter)
	if err != nil {
		clear(parameter)
	}
	return err
}

// unsealing takes the key out of the response where go-tpm has decrypted it in
// place, and leaves zeros for the copies that go-tpm makes of it.
type unsealing struct {
	tpm2.Session
	key *secret.Key
}

// Decrypt implements [tpm2.Session]. The parameter is the content of a
// TPM2B_SENSITIVE_DATA; go-tpm has authenticated the response before.
func (u *unsealing) Decrypt(parameter []byte) error {
	defer clear(parameter)
	if err := u.Session.Decrypt(parameter); err != nil {
		return err
	}
	key, err := secret.New(len(parameter))
	if err != nil {
		return fmt.Errorf("no place for the key: %w", err)
	}
	copy(key.Bytes(), parameter)
	u.key = key
	return nil
}
