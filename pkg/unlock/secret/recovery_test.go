package secret

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

// What systemd's src/shared/recovery-key.c makes of the bytes 0x00 to 0x1f.
const recoveryVector = "cccbcdce-cfcgchci-cjckclcn-crctcucv-bcbbbdbe-bfbgbhbi-bjbkblbn-brbtbubv"

func TestRecoveryVector(t *testing.T) {
	raw := make([]byte, recoveryBytes)
	for i := range raw {
		raw[i] = byte(i)
	}
	k, err := encodeRecovery(key(t, string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Wipe()
	if string(k.Bytes()) != recoveryVector {
		t.Errorf("got  %s\nwant %s", k.Bytes(), recoveryVector)
	}
}

func TestRecoveryKey(t *testing.T) {
	shape := regexp.MustCompile(`^[cbdefghijklnrtuv]{8}(-[cbdefghijklnrtuv]{8}){7}$`)
	a, err := RecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Wipe()
	b, err := RecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Wipe()
	if !shape.Match(a.Bytes()) {
		t.Errorf("not a recovery key: %s", a.Bytes())
	}
	if bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two recovery keys are equal")
	}
}

func TestNormalizeRecovery(t *testing.T) {
	plain := strings.ReplaceAll(recoveryVector, "-", "")
	for name, test := range map[string]struct {
		give string
		want bool
	}{
		"as enrolled":         {recoveryVector, true},
		"capitals":            {strings.ToUpper(recoveryVector), true},
		"no dashes":           {plain, true},
		"capitals, no dashes": {strings.ToUpper(plain), true},
		"mixed case":          {strings.ToUpper(recoveryVector[:20]) + recoveryVector[20:], true},
		"newline":             {recoveryVector + "\n", false},
		"too short":           {recoveryVector[:70], false},
		"half the dashes":     {strings.Replace(recoveryVector, "-", "", 4), false},
		"spaces":              {strings.ReplaceAll(recoveryVector, "-", " "), false},
		"moved dash":          {"cccbcdc-ecfcgchci" + recoveryVector[17:], false},
		"dash for a letter":   {"-" + plain[1:], false},
		"not modhex":          {"a" + recoveryVector[1:], false},
		"hex":                 {strings.Repeat("0", 64), false},
		"a passphrase":        {"correct horse battery staple", false},
	} {
		t.Run(name, func(t *testing.T) {
			k := key(t, test.give)
			normal, ok, err := NormalizeRecovery(k)
			defer normal.Wipe()
			if err != nil || ok != test.want {
				t.Fatalf("recognised: %t, %v, want %t", ok, err, test.want)
			}
			if ok && string(normal.Bytes()) != recoveryVector {
				t.Errorf("got %s, want %s", normal.Bytes(), recoveryVector)
			}
			if !ok && normal != nil {
				t.Error("a key came back although it is not a recovery key")
			}
			if string(k.Bytes()) != test.give {
				t.Error("the argument changed")
			}
		})
	}
}
