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
		"no opening brace":          {once("{", "["), "the JSON is not one object"},
		"byte right after the end":  {text + "\x00x", "bytes after the end"},
		"digests missing":           {once(`"digests":{`, `"x":{`), "digests: missing"},
		"segments an array":         {once(`"segments":{`, `"segments":[],"x":{`), "segments: not an object"},
		"keyslot an array":          {once(`"keyslots":{"0":{`, `"keyslots":{"9":[],"0":{`), "keyslots.9: not an object"},
		"keyslot without a type":    {once(`"type":"luks2",`, ``), "keyslots.0.type: missing"},
		"keyslot without key size":  {once(`"key_size":64,`, ``), "keyslots.0.key_size: missing"},
		"keyslot without a KDF":     {once(`"kdf":{`, `"x":{`), "keyslots.0.kdf: missing"},
		"keyslot without splitter":  {once(`"af":{`, `"x":{`), "keyslots.0.af: missing"},
		"keyslot without an area":   {once(`"area":{`, `"x":{`), "keyslots.0.area: missing"},
		"area size as a number":     {once(`"size":"258048"`, `"size":258048`), "keyslots.0.area.size: not a string"},
		"segment without a type":    {once(`"type":"crypt",`, ``), "segments.0.type: missing"},
		"segment type a number":     {once(`"type":"crypt"`, `"type":42`), "segments.0.type: not a string"},
		"segment without an offset": {once(`"offset":"16777216",`, ``), "segments.0.offset: missing"},
		"segment offset a number":   {once(`"offset":"16777216"`, `"offset":16777216`), "segments.0.offset: not a string"},
		"segment without a size":    {once(`"size":"dynamic",`, ``), "segments.0.size: missing"},
		"segment size a number":     {once(`"size":"dynamic"`, `"size":4096`), "segments.0.size: not a string"},
		"segment size negative":     {once(`"size":"dynamic"`, `"size":"-512"`), "segments.0.size: not a number of bytes"},
		"segment size of 64 bits":   {once(`"size":"dynamic"`, `"size":"18446744073709551615"`), "segments.0.size: not a number of bytes"},
		"segment size of 65 bits":   {once(`"size":"dynamic"`, `"size":"18446744073709551616"`), "segments.0.size: not a number of bytes"},
		"segment without a cipher":  {once(`"encryption":"aes-xts-plain64","sector_size"`, `"sector_size"`), "segments.0.encryption: missing"},
		"segment cipher a list":     {once(`"encryption":"aes-xts-plain64","sector_size"`, `"encryption":[],"sector_size"`), "segments.0.encryption: not a string"},
		"segment without an IV":     {once(`"iv_tweak":"0",`, ``), "segments.0.iv_tweak: missing"},
		"IV tweak a number":         {once(`"iv_tweak":"0"`, `"iv_tweak":0`), "segments.0.iv_tweak: not a string"},
		"segment without sectors":   {once(`"sector_size":4096`, `"x":4096`), "segments.0.sector_size: missing"},
		"sector size as a string":   {once(`"sector_size":4096`, `"sector_size":"4096"`), "segments.0.sector_size: not a number"},
		"sector size negative":      {once(`"sector_size":4096`, `"sector_size":-4096`), "segments.0.sector_size: not an unsigned 32-bit number"},
		"segment flags a string":    {once(`"iv_tweak":"0"`, `"flags":"x","iv_tweak":"0"`), "segments.0.flags: not an array"},
		"segment flags of numbers":  {once(`"iv_tweak":"0"`, `"flags":[1],"iv_tweak":"0"`), "segments.0.flags: not an array of strings"},
		"token a string":            {once(`"tokens":{`, `"tokens":{"9":"x",`), "tokens.9: not an object"},
		"token type a number":       {once(`"type":"systemd-recovery"`, `"type":1`), "tokens.0.type: not a string"},
		"token without keyslots":    {once(`"type":"systemd-recovery","keyslots":["0"]`, `"type":"systemd-recovery"`), "tokens.0.keyslots: missing"},
		"token, keyslots a string":  {once(`"type":"systemd-recovery","keyslots":["0"]`, `"type":"systemd-recovery","keyslots":"0"`), "tokens.0.keyslots: not an array"},
		"token, keyslot a number":   {once(`"type":"systemd-recovery","keyslots":["0"]`, `"type":"systemd-recovery","keyslots":[0]`), "tokens.0.keyslots: not an array of strings"},
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

// Neither the length of the JSON nor how a token was laid out in it matters.
func TestUnusualTextIsRead(t *testing.T) {
	b := loadBase(t)
	text := string(bytes.TrimRight(b.head[binaryBytes:b.headerSize], "\x00"))
	loose := strings.Replace(text, `{"type":"systemd-recovery",`, "{\n  \"type\" : \"systemd-recovery\",\n  ", 1)
	room := b.headerSize - binaryBytes - len(text) - 1 - len(`"note":"",`)
	full := strings.Replace(text, `{"type":"systemd-recovery",`, `{"note":"`+strings.Repeat("x", room)+`","type":"systemd-recovery",`, 1)
	for name, text := range map[string]string{"unchanged": text, "not compact": loose, "full": full} {
		h, err := Read(b.withText([]byte(text)), b.size)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := h.Validate(b.size); err != nil || len(h.Damage) > 0 || len(h.Tokens("systemd-recovery")) != 1 {
			t.Errorf("%s: %v, damage %v", name, err, h.Damage)
		}
	}
}
