package secret

// The recovery key of systemd (src/shared/recovery-key.c): 32 random bytes in
// modhex, in groups of eight characters joined by dashes.
const (
	recoveryBytes   = 32
	recoveryGroup   = 8
	recoveryPlain   = 2 * recoveryBytes
	recoveryDashed  = recoveryPlain + recoveryPlain/recoveryGroup - 1
	modhexAlphabet  = "cbdefghijklnrtuv"
	lowerCaseOffset = 'a' - 'A'
)

// RecoveryKey returns a new recovery key: 256 random bits as 71 characters of
// lower-case modhex with dashes. This form is the passphrase that is enrolled.
func RecoveryKey() (*Key, error) {
	raw, err := Random(recoveryBytes)
	if err != nil {
		return nil, err
	}
	defer raw.Wipe()
	return encodeRecovery(raw)
}

func encodeRecovery(raw *Key) (*Key, error) {
	k, err := New(recoveryDashed)
	if err != nil {
		return nil, err
	}
	for i, b := range raw.Bytes() {
		putRecovery(k.Bytes(), 2*i, modhexAlphabet[b>>4])
		putRecovery(k.Bytes(), 2*i+1, modhexAlphabet[b&15])
	}
	return k, nil
}

// putRecovery writes the i-th of 64 characters, and the dash before its group.
func putRecovery(dst []byte, i int, c byte) {
	group := i / recoveryGroup
	dst[i+group] = c
	if group > 0 && i%recoveryGroup == 0 {
		dst[i+group-1] = '-'
	}
}

// NormalizeRecovery returns, as a new key, the enrolled form of a recovery key
// that was typed in capitals or without its dashes. It returns false, and no
// key, if k is not a recovery key in any of these forms.
func NormalizeRecovery(k *Key) (*Key, bool, error) {
	if !isRecovery(k.Bytes()) {
		return nil, false, nil
	}
	normal, err := New(recoveryDashed)
	if err != nil {
		return nil, false, err
	}
	i := 0
	for _, c := range k.Bytes() {
		if c != '-' {
			putRecovery(normal.Bytes(), i, lower(c))
			i++
		}
	}
	return normal, true, nil
}

// isRecovery accepts 64 modhex characters, or 71 with a dash after each group.
func isRecovery(b []byte) bool {
	if len(b) != recoveryPlain && len(b) != recoveryDashed {
		return false
	}
	dashed := len(b) == recoveryDashed
	for i, c := range b {
		if dashed && i%(recoveryGroup+1) == recoveryGroup {
			if c != '-' {
				return false
			}
		} else if !isModhex(lower(c)) {
			return false
		}
	}
	return true
}

func isModhex(c byte) bool {
	for i := range len(modhexAlphabet) {
		if modhexAlphabet[i] == c {
			return true
		}
	}
	return false
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + lowerCaseOffset
	}
	return c
}
