package tpm2

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"luksmediad/test/swtpm"
)

// sample reads a token that systemd-cryptenroll wrote, as cryptsetup exports it.
func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSpace(data)
}

// shape is a token's JSON in its order, with the length of what differs from key to key.
func shape(data []byte) (names []string) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	for {
		token, err := decoder.Token()
		if err != nil {
			return names
		}
		if text, ok := token.(string); ok && len(text) > 40 {
			token = len(text)
		}
		names = append(names, string(must(json.Marshal(token))))
	}
}

// Our token has the fields of systemd's, in its order, and all but the keys' bytes are the same.
func TestSealWritesTheTokenOfSystemd(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	for kind, opts := range map[string]SealOptions{
		"pcr7":     {PCRs: []int{7}},
		"none":     {},
		"sha384":   {PCRs: []int{7}, Bank: SHA384},
		"pcr7-pin": {PCRs: []int{7}, PIN: newPIN(t, "1234")},
	} {
		token := sealWith(t, s, newKey(t), opts)
		wantLike(t, token, "systemd257-"+kind)
		wantLike(t, token, "systemd262-"+kind) // the PIN with --tpm2-with-pin=direct
	}
}

func wantLike(t *testing.T, token *Token, name string) {
	t.Helper()
	if got, want := shape(must(token.MarshalJSON())), shape(sample(t, name)); !slices.Equal(got, want) {
		t.Errorf("our token is\n%v, that of %s is\n%v", got, name, want)
	}
	theirs := must(ParseToken(sample(t, name)))
	if attributes := theirs.Public[4:8]; !bytes.Equal(token.Public[4:8], attributes) {
		t.Errorf("our object has attributes %x, that of %s has %x", token.Public[4:8], name, attributes)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// edit changes members of a token's JSON; nil removes one.
func edit(t *testing.T, data []byte, changes map[string]any) []byte {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal(data, &object); err != nil {
		t.Fatal(err)
	}
	maps.Copy(object, changes)
	maps.DeleteFunc(object, func(_ string, value any) bool { return value == nil })
	edited, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return edited
}

// flipped changes one bit of a base64 text, counted from the front or, if negative, from the back.
func flipped(t *testing.T, data []byte, field string, at int) string {
	t.Helper()
	var object map[string]json.RawMessage
	var raw []byte
	if err := errors.Join(json.Unmarshal(data, &object), json.Unmarshal(object[field], &raw)); err != nil {
		t.Fatal(err)
	}
	raw[(at+len(raw))%len(raw)] ^= 1
	return base64.StdEncoding.EncodeToString(raw)
}

func TestParseTokenRefuses(t *testing.T) {
	good := sample(t, "systemd257-pcr7")
	for name, test := range map[string]struct {
		changes map[string]any
		class   error
	}{
		"another type":             {map[string]any{"type": "clevis"}, ErrToken},
		"no type":                  {map[string]any{"type": nil}, ErrToken},
		"no keyslots":              {map[string]any{"keyslots": nil}, ErrToken},
		"keyslot as number":        {map[string]any{"keyslots": []int{1}}, ErrToken},
		"keyslot out of range":     {map[string]any{"keyslots": []string{"32"}}, ErrToken},
		"keyslot with a sign":      {map[string]any{"keyslots": []string{"+1"}}, ErrToken},
		"no blob":                  {map[string]any{"tpm2-blob": nil}, ErrToken},
		"blob not base64":          {map[string]any{"tpm2-blob": "!"}, ErrToken},
		"blob empty":               {map[string]any{"tpm2-blob": ""}, ErrToken},
		"blob cut short":           {map[string]any{"tpm2-blob": "AJ4AIMKD"}, ErrToken},
		"blob of another type":     {map[string]any{"tpm2-blob": flipped(t, good, "tpm2-blob", -77)}, ErrToken},
		"blob of another policy":   {map[string]any{"tpm2-blob": flipped(t, good, "tpm2-blob", -40)}, ErrToken},
		"no PCRs":                  {map[string]any{"tpm2-pcrs": nil}, ErrToken},
		"PCR out of range":         {map[string]any{"tpm2-pcrs": []int{24}}, ErrToken},
		"PCR negative":             {map[string]any{"tpm2-pcrs": []int{-1}}, ErrToken},
		"PCR twice":                {map[string]any{"tpm2-pcrs": []int{7, 7}}, ErrToken},
		"PCR not whole":            {map[string]any{"tpm2-pcrs": []float64{7.5}}, ErrToken},
		"unknown bank":             {map[string]any{"tpm2-pcr-bank": "md5"}, ErrUnsupported},
		"unknown primary":          {map[string]any{"tpm2-primary-alg": "dsa"}, ErrUnsupported},
		"policy hash not hex":      {map[string]any{"tpm2-policy-hash": strings.Repeat("x", 64)}, ErrToken},
		"policy hash short":        {map[string]any{"tpm2-policy-hash": "00"}, ErrToken},
		"another policy hash":      {map[string]any{"tpm2-policy-hash": strings.Repeat("0", 64)}, ErrToken},
		"PIN not a boolean":        {map[string]any{"tpm2-pin": "no"}, ErrToken},
		"SRK empty":                {map[string]any{"tpm2_srk": ""}, ErrToken},
		"SRK with magic":           {map[string]any{"tpm2_srk": "aWVzeQABgQAAAQ=="}, ErrToken},
		"SRK of another name":      {map[string]any{"tpm2_srk": flipped(t, good, "tpm2_srk", 10)}, ErrToken},
		"SRK of another key":       {map[string]any{"tpm2_srk": flipped(t, good, "tpm2_srk", -1)}, ErrToken},
		"SRK not persistent":       {map[string]any{"tpm2_srk": flipped(t, good, "tpm2_srk", 0)}, ErrToken},
		"SRK not a key":            {map[string]any{"tpm2_srk": flipped(t, good, "tpm2_srk", 43)}, ErrToken},
		"secret in shards":         {map[string]any{"tpm2-blob": []string{"AA==", "AA=="}}, ErrUnsupported},
		"policies of shards":       {map[string]any{"tpm2-policy-hash": []string{"00", "00"}}, ErrUnsupported},
		"a field of the future":    {map[string]any{"tpm2_quantum": true}, ErrUnsupported},
		"a field in other letters": {map[string]any{"TPM2-PIN": true}, ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseToken(edit(t, good, test.changes))
			wantClass(t, err, test.class)
			if strings.Contains(name, "shards") && !strings.Contains(err.Error(), "secret in shards") {
				t.Errorf("error %q does not name the shards", err)
			}
		})
	}
}

func TestParseTokenRefusesJSON(t *testing.T) {
	good := string(sample(t, "systemd257-pcr7"))
	for name, data := range map[string]string{
		"nothing":        "",
		"an array":       "[" + good + "]",
		"cut short":      good[:len(good)-1],
		"something more": good + good,
		"a field twice":  strings.Replace(good, "{", `{"tpm2-pin":false,"tpm2-pin":true,`, 1),
		"a null":         strings.Replace(good, "{", `{"tpm2_salt":null,`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseToken([]byte(data))
			wantClass(t, err, ErrToken)
		})
	}
}

// What Unseal cannot handle, or not without help, can be listed all the same, and says why.
func TestTokensThatNeedMore(t *testing.T) {
	none := sample(t, "systemd257-none")
	for reason, test := range map[string]struct {
		data  []byte
		class error
	}{
		"PCR policy is signed":           {sample(t, "systemd257-signed"), ErrSignature},
		"policy kept by systemd-pcrlock": {edit(t, none, map[string]any{"tpm2_pcrlock": true}), ErrUnsupported},
		"policy kept by systemd-pcrlock:": {edit(t, none, map[string]any{
			"tpm2_pcrlock": true, "tpm2_pcrlock_nv": "AAA="}), ErrUnsupported},
		"PIN needed":  {sample(t, "systemd257-pin"), ErrPINNeeded},
		"PIN needed:": {sample(t, "systemd252-pin"), ErrPINNeeded},
	} {
		token, err := ParseToken(test.data)
		if err != nil {
			t.Errorf("%s: %v", reason, err)
			continue
		}
		_, err = token.prove(UnsealOptions{})
		wantClass(t, err, test.class)
		if err != nil && !strings.HasPrefix(err.Error(), strings.TrimSuffix(reason, ":")) {
			t.Errorf("error is %q, want it to start with %q", err, reason)
		}
	}
}

// PCRs without a bank are those of SHA-256, as in tokens of systemd up to 249.
func TestTokenWithoutBank(t *testing.T) {
	token, err := ParseToken(edit(t, sample(t, "systemd252-pcr7"), map[string]any{"tpm2-pcr-bank": nil}))
	if err != nil {
		t.Fatal(err)
	}
	if same, err := token.PolicyMatches(map[int][]byte{7: make([]byte, 32)}, nil); !same || err != nil {
		t.Errorf("PolicyMatches = %v, %v", same, err)
	}
}

// A token that is read and written comes out the same ever after.
func FuzzParseToken(f *testing.F) {
	for _, name := range samples(f) {
		f.Add(sample(f, name))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		token, err := ParseToken(data)
		if err != nil {
			if !errors.Is(err, ErrToken) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("error of no class: %v", err)
			}
			return
		}
		first, err := token.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseToken(first)
		if err != nil {
			t.Fatalf("cannot read what was written: %v\n%s", err, first)
		}
		if second, _ := again.MarshalJSON(); !bytes.Equal(first, second) {
			t.Errorf("token is written as\n%s, then as\n%s", first, second)
		}
	})
}

// The binary parts come from the disk too. Read and written, they are the same.
func FuzzParseObject(f *testing.F) {
	token, err := ParseToken(sample(f, "systemd257-pcr7"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token.blob(), token.SRK.marshal())
	f.Add(append(token.blob(), 0, 1, 0), []byte{})
	f.Fuzz(func(t *testing.T, blob, srk []byte) {
		object := &Token{PolicyHash: token.PolicyHash}
		if object.setBlob(&tokenJSON{Blob: blob}) == nil && !bytes.Equal(object.blob(), blob) {
			t.Errorf("tpm2-blob %x comes out as %x", blob, object.blob())
		}
		if key, err := parseSRK(srk); err == nil && !bytes.Equal(key.marshal(), srk) {
			t.Errorf("tpm2_srk %x comes out as %x", srk, key.marshal())
		}
	})
}
