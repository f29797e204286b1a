//go:build interop

package interop

import (
	"github.com/google/go-tpm/tpm2"

	seal "luksmediad/pkg/unlock/tpm2"
)

const sha256 = tpm2.TPMAlgSHA256

// shape is a row of the table: a kind of token or keyslot.
type shape struct {
	// id names files, name stands in the table.
	id, name string
	// since and upTo are the versions of systemd that make it, 0 for no limit.
	since, upTo int
	theirs      func(*cell) string
	// ours is nil for what luksmediad does not write.
	ours func(*cell) string
}

func shapes() []shape {
	rsa := func(c *cell) { c.makeSRK("rsa2048") }
	return []shape{
		{"none", "no PCRs", 0, 0, sealed("--tpm2-pcrs="), seals(seal.SealOptions{})},
		{"pcr7", "PCR 7", 0, 0, sealed("--tpm2-pcrs=7"), seals(seal.SealOptions{PCRs: []int{7}})},
		{"pcrs", "PCRs 0, 2, 4, 7, 14", 0, 0, sealed("--tpm2-pcrs=0+2+4+7+14"), seals(seal.SealOptions{PCRs: []int{0, 2, 4, 7, 14}})},
		{"sha384", "PCR 7, SHA-384 bank", 255, 0, sealed("--tpm2-pcrs=7:sha384"), seals(seal.SealOptions{PCRs: []int{7}, Bank: seal.SHA384})},
		{"sha1", "PCR 7, SHA-1 bank", 0, 0, sealedSHA1, seals(seal.SealOptions{PCRs: []int{7}, Bank: seal.SHA1})},
		{"rsa", "PCR 7, under an RSA key", 0, 0, sealedUnderRSA, seals(seal.SealOptions{PCRs: []int{7}}, rsa)},
		{"pin-unsalted", "PIN without salt", 0, 252, sealedWithPIN("--tpm2-pcrs=", "--tpm2-with-pin=yes"), nil},
		{"pin", "PIN with salt (PBKDF2)", 253, 0, sealedPBKDF2("--tpm2-pcrs="), sealsWithPIN(seal.SealOptions{})},
		{"pcr7-pin", "PCR 7 and PIN", 0, 0, sealedPBKDF2("--tpm2-pcrs=7"), sealsWithPIN(seal.SealOptions{PCRs: []int{7}})},
		{"argon2id", "PCR 7 and PIN under Argon2id", 262, 0, sealedWithPIN("--tpm2-pcrs=7", "--tpm2-with-pin=yes",
			"--tpm2-argon2id-memory=33555000", "--tpm2-argon2id-iterations=3", "--tpm2-argon2id-parallelism=3"), nil},
		{"signed", "signed PCR 11", 0, 0, signed(nil, false, "--tpm2-pcrs="), nil},
		{"signed-pcr7", "signed PCR 11 and PCR 7", 0, 0, signed(nil, false, "--tpm2-pcrs=7"), nil},
		{"signed-pin", "signed PCR 11 and PIN", 0, 0, signed(nil, true, "--tpm2-pcrs="), nil},
		{"signed-ref", "signed PCR 11 for a policy reference", 262, 0,
			signed([]string{"--policyref=initrd"}, false, "--tpm2-pcrs=", "--tpm2-public-key-policyref=initrd"), nil},
		{"offline", "PCR 7, sealed offline", 255, 0, sealedOffline("ecc256"), nil},
		{"offline-rsa", "PCR 7, sealed offline for an RSA key", 255, 0, sealedOffline("rsa2048"), nil},
		{"pcrlock", "pcrlock", 255, 0, locked("pcrlock"), nil},
		{"shards", "pcrlock and signed PCR 11, in two shards", 257, 0,
			locked("shards", "--tpm2-public-key=PUBLIC", "--tpm2-public-key-pcrs=11"), nil},
		{"recovery", "recovery key", 0, 0, recoveryKey, makesRecoveryKey},
		{"passphrase", "passphrase (Argon2id)", 0, 0, passphraseSlot, makesPassphrase},
		{"keyfile", "key file", 0, 0, keyFileSlot, makesKeyFile},
	}
}
