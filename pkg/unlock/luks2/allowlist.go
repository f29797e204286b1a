package luks2

import (
	"slices"
	"strings"
)

// stripes is the only number of anti-forensic stripes that cryptsetup knows.
const stripes = 4000

// What cryptsetup accepts of Argon2 (lib/crypto_backend/pbkdf_check.c); the
// upper limits keep a crafted header from taking the machine's memory.
const (
	minIterations  = 1000 // PBKDF2
	minTime        = 4
	minMemoryKiB   = 32
	maxMemoryKiB   = 4 << 20
	maxCPUs        = 4
	minDigestBytes = 20 // LUKS1 had SHA-1
	digestSaltLen  = 32
)

func (v *validator) cipher(field, name string) {
	if keyBits(name) == nil {
		v.refuse(field, name, strings.Join(ciphers(), ", "))
	}
}

// ciphers are the default of cryptsetup and what its manual page names for
// LUKS2 without integrity, as far as it is sound: neither ECB or plain CBC,
// nor an IV of 32 bits. essiv is what LUKS1 headers made before 2013 and
// converted since have.
func ciphers() []string {
	return []string{
		"aes-xts-plain64", "serpent-xts-plain64", "twofish-xts-plain64", "camellia-xts-plain64",
		"xchacha12,aes-adiantum-plain64", "xchacha20,aes-adiantum-plain64", "aes-cbc-essiv:sha256",
	}
}

// keyBits are the key sizes that a cipher allows, nil for any other cipher.
func keyBits(cipher string) []int {
	switch {
	case !slices.Contains(ciphers(), cipher):
		return nil
	case strings.Contains(cipher, "-xts-"):
		return []int{256, 384, 512} // two keys
	case strings.Contains(cipher, "-cbc-"):
		return []int{128, 192, 256}
	}
	return []int{256}
}

// hash refuses what cryptsetup would not have used by itself or by --hash.
func (v *validator) hash(field, name string) {
	oneOf(v, field, name, "sha256", "sha512", "sha384", "sha224", "sha1", "sha3-256", "sha3-512", "sha3-384",
		"sha3-224", "blake2b-512", "blake2b-256", "blake2s-256", "ripemd160", "whirlpool", "sm3")
}
