package tpm2

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// samples are the names of all golden tokens: what systemd-cryptenroll of three versions wrote (test/interop/run -corpus).
func samples(t testing.TB) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".json"))
	}
	return names
}

// Every token that systemd wrote is read, or named as what it is, and says what the options of its enrolment were.
func TestCorpusIsRead(t *testing.T) {
	for _, name := range samples(t) {
		version, shape, _ := strings.Cut(name, "-")
		token, err := ParseToken(sample(t, name))
		if shape == "shards" {
			if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "secret in shards") {
				t.Errorf("%s: %v, want the shards named", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for what, holds := range map[string]bool{
			"SRK":         (token.SRK != nil) == (version != "systemd252"),
			"RSA":         (token.PrimaryAlg == "rsa") == strings.Contains(shape, "rsa"),
			"PIN":         token.PIN == (strings.Contains(shape, "pin") || shape == "argon2id"),
			"salt":        (len(token.Salt) > 0) == (token.PIN && version != "systemd252"),
			"Argon2id":    (token.Argon2id != nil) == (version == "systemd262" && (shape == "argon2id" || shape == "signed-pin")),
			"signer":      (token.Pubkey != nil) == strings.HasPrefix(shape, "signed"),
			"signed PCRs": slices.Equal(token.PubkeyPCRs, []int{11}) == strings.HasPrefix(shape, "signed"),
			"reference":   token.PubkeyRef == map[bool]string{true: "initrd"}[shape == "signed-ref"],
			"seed":        (token.Seed != nil) == strings.HasPrefix(shape, "offline"),
			"pcrlock":     token.PCRLock == (shape == "pcrlock"),
			"keyslot":     slices.Equal(token.Keyslots, []int{1}),
		} {
			if !holds {
				t.Errorf("%s: %s is not as enrolled: %+v", name, what, token)
			}
		}
		_, err = token.Policy()
		if errors.Is(err, ErrUnsupported) != (shape == "pcrlock") || err != nil && shape != "pcrlock" {
			t.Errorf("%s: policy: %v", name, err)
		}
		wantAsWritten(t, name, token)
	}
}

// wantAsWritten compares what becomes of a token with what systemd wrote. Up to version 255 that had more in it: false where
// something is not there.
func wantAsWritten(t *testing.T, name string, token *Token) {
	t.Helper()
	want := sample(t, name)
	if strings.HasPrefix(name, "systemd252") {
		want = bytes.Replace(want, []byte(`,"tpm2-pin":false`), nil, 1)
	}
	got, err := token.MarshalJSON()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s comes out as\n%s (%v), systemd wrote\n%s", name, got, err, want)
	}
}

// Each version of systemd, with each shape that it makes.
func TestCorpusIsComplete(t *testing.T) {
	since252 := []string{"none", "pcr7", "pcrs", "sha1", "rsa", "pcr7-pin", "signed", "signed-pcr7", "signed-pin"}
	since257 := slices.Concat(since252, []string{"sha384", "pin", "offline", "offline-rsa", "pcrlock", "shards"})
	have := samples(t)
	for version, shapes := range map[string][]string{
		"systemd252": slices.Concat(since252, []string{"pin-unsalted"}),
		"systemd257": since257,
		"systemd262": slices.Concat(since257, []string{"argon2id", "signed-ref"}),
	} {
		for _, shape := range shapes {
			if name := version + "-" + shape; !slices.Contains(have, name) {
				t.Errorf("%s is not in the corpus", name)
			}
		}
	}
}
