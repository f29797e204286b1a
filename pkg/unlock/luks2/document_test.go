package luks2

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// Metadata that cannot be read is damage, checksum or not: cryptsetup treats
// it so too, and takes the other copy.
func TestMalformedMetadata(t *testing.T) {
	b := loadBase(t)
	text := string(bytes.TrimRight(b.head[binaryBytes:b.headerSize], "\x00"))
	once := func(old, replacement string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in the header", old)
		}
		return strings.Replace(text, old, replacement, 1)
	}
	for name, test := range map[string]struct{ text, reason string }{
		"empty":                     {"", "the JSON is not one object"},
		"array":                     {"[]", "the JSON is not one object"},
		"blank before":              {" " + text, "the JSON is not one object"},
		"blank after":               {text + "\n", "the JSON is not one object"},
		"two objects":               {text + "{}", "syntax error"},
		"cut":                       {text[:len(text)-2] + "}", "syntax error"},
		"comment":                   {once("{", "{/**/"), "syntax error"},
		"single quotes":             {once(`"type"`, `'type'`), "syntax error"},
		"not UTF-8":                 {once("systemd-recovery", "systemd-\xff"), "not UTF-8"},
		"bytes after the end":       {text + "\x00\x00x", "bytes after the end"},
		"fills the area":            {text + strings.Repeat(" ", b.headerSize-binaryBytes-len(text)), "no zero byte"},
		"member twice":              {once(`"sector_size"`, `"encryption":"cipher_null-ecb","sector_size"`), `member "encryption" occurs twice`},
		"member twice, escaped":     {once(`"sector_size"`, `"\u0065ncryption":"cipher_null-ecb","sector_size"`), `member "encryption" occurs twice`},
		"NUL in a name":             {once(`"sector_size"`, `"encryption\u0000":"cipher_null-ecb","sector_size"`), "NUL in the string"},
		"NUL in a value":            {once(`"aes-xts-plain64"`, `"aes-xts-plain64\u0000"`), "NUL in the string"},
		"deep":                      {once(`"tokens":{`, `"x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,"tokens":{`), "more than 32 deep"},
		"name in capitals":          {once(`"segments":{`, `"Segments":{`), "segments: missing"},
		"keyslots missing":          {once(`"keyslots":{`, `"x":{`), "keyslots: missing"},
		"config missing":            {once(`"config":{`, `"x":{`), "config: missing"},
		"tokens not an object":      {once(`"tokens":{`, `"x":{},"tokens":[],"y":{`), "tokens: not an object"},
		"keyslot number":            {once(`"keyslots":{"0":`, `"keyslots":{"00":`), "keyslots.00: not a number below 32"},
		"keyslot number too large":  {once(`"keyslots":{"0":`, `"keyslots":{"32":`), "keyslots.32: not a number below 32"},
		"keyslot number negative":   {once(`"keyslots":{"0":`, `"keyslots":{"-1":`), "keyslots.-1: not a number below 32"},
		"offset as a number":        {once(`"offset":"32768"`, `"offset":32768`), "keyslots.0.area.offset: not a string"},
		"offset in hexadecimal":     {once(`"offset":"32768"`, `"offset":"0x8000"`), "keyslots.0.area.offset: not a number of bytes"},
		"offset with a sign":        {once(`"offset":"32768"`, `"offset":"+32768"`), "keyslots.0.area.offset: not a number of bytes"},
		"offset negative":           {once(`"offset":"32768"`, `"offset":"-1"`), "keyslots.0.area.offset: not a number of bytes"},
		"offset with a zero":        {once(`"offset":"32768"`, `"offset":"032768"`), "keyslots.0.area.offset: not a number of bytes"},
		"offset of 64 bits":         {once(`"offset":"32768"`, `"offset":"18446744073709551615"`), "keyslots.0.area.offset: not a number of bytes"},
		"size as text":              {once(`"dynamic"`, `"static"`), "segments.0.size: not a number of bytes"},
		"key size with a fraction":  {once(`"key_size":64`, `"key_size":64.0`), "keyslots.0.key_size: not an unsigned 32-bit number"},
		"key size negative":         {once(`"key_size":64`, `"key_size":-64`), "keyslots.0.key_size: not an unsigned 32-bit number"},
		"key size of 33 bits":       {once(`"key_size":64`, `"key_size":4294967296`), "keyslots.0.key_size: not an unsigned 32-bit number"},
		"key size as a string":      {once(`"key_size":64`, `"key_size":"64"`), "keyslots.0.key_size: not a number"},
		"stripes missing":           {once(`"stripes":4000,`, ``), "keyslots.0.af.stripes: missing"},
		"salt not base64":           {once(`"salt":"`, `"salt":"!`), "keyslots.0.kdf.salt: not base64"},
		"type null":                 {once(`"type":"crypt"`, `"type":null`), "segments.0.type: not a string"},
		"digest of no keyslot":      {once(`"keyslots":["5"]`, `"keyslots":["6"]`), `digests.1.keyslots: "6" does not exist`},
		"digest of no segment":      {once(`"segments":["0"]`, `"segments":["1"]`), `digests.0.segments: "1" does not exist`},
		"digest, keyslot twice":     {once(`"keyslots":["5"]`, `"keyslots":["5","5"]`), `digests.1.keyslots: "5" occurs twice`},
		"digest, keyslot a number":  {once(`"keyslots":["5"]`, `"keyslots":[5]`), "digests.1.keyslots: not an array of strings"},
		"token of no keyslot":       {once(`"type":"systemd-recovery","keyslots":["0"]`, `"type":"systemd-recovery","keyslots":["3"]`), `tokens.0.keyslots: "3" does not exist`},
		"token without a type":      {once(`"type":"systemd-recovery",`, ``), "tokens.0.type: missing"},
		"flags not of strings":      {once(`"config":{`, `"config":{"flags":[1],`), "config.flags: not an array of strings"},
		"requirements not readable": {once(`"config":{`, `"config":{"requirements":{"mandatory":"x"},`), "config.requirements.mandatory: not an array"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(b.withText([]byte(test.text)), b.size)
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("error %v, want %v", err, ErrDamaged)
			}
			damage, ok := errors.AsType[*Damage](err)
			if !ok || damage.Reason != ReasonMetadata || !strings.Contains(damage.Error(), test.reason) {
				t.Errorf("damage %v, want %s", damage, test.reason)
			}
		})
	}
}

func TestUnchangedTextIsRead(t *testing.T) {
	b := loadBase(t)
	text := bytes.TrimRight(b.head[binaryBytes:b.headerSize], "\x00")
	if _, err := Read(b.withText(text), b.size); err != nil {
		t.Error(err)
	}
}
