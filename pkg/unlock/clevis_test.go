package unlock

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/test/swtpm"
	"luksmediad/test/tang"
)

// bind gives a container a keyslot by the real clevis-luks-bind(1).
func bind(t testing.TB, device, pin, settings string) {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	writeFile(t, key, formatKey, 0o400)
	cmd := exec.Command("clevis", "luks", "bind", "-y", "-d", device, "-k", key, pin, settings)
	cmd.Env = append(os.Environ(), "PATH="+command.Path) // cryptsetup is not on the path of an ordinary user
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("clevis luks bind: %v\n%s", err, output)
	}
}

func tangOf(servers ...*tang.Server) string {
	urls := make([]string, len(servers))
	for i, server := range servers {
		urls[i] = fmt.Sprintf(`{"url":%q}`, server.URL())
	}
	return "[" + strings.Join(urls, ",") + "]"
}

func newClevis() Clevis { return Clevis{Runner: command.Runner{}, Timeout: 30 * time.Second} }

// decrypt gives what each token of a container gives, and proves each key on its keyslots.
func decrypt(t *testing.T, device string) []error {
	t.Helper()
	var results []error
	header := readHeader(t, device)
	cryptsetup := Cryptsetup{Runner: command.Runner{}}
	for offer, err := range newClevis().Offers(t.Context(), header) {
		if err == nil {
			for _, slot := range offer.Keyslots {
				if err := cryptsetup.Prove(t.Context(), device, header, offer.Key, slot); err != nil {
					t.Error(err)
				}
			}
		}
		offer.Key.Wipe()
		results = append(results, err)
	}
	return results
}

// What clevis has bound is opened: one tang server, and any two of three.
func TestClevisTang(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	first, second, third := tang.Start(t), tang.Start(t), tang.Start(t)
	bind(t, device, "tang", fmt.Sprintf(`{"url":%q}`, first.URL()))
	bind(t, device, "sss", fmt.Sprintf(`{"t":2,"pins":{"tang":%s}}`, tangOf(first, second, third)))
	bind(t, device, "tang", fmt.Sprintf(`{"url":%q}`, third.URL()))
	killKeyslot(t, device, readHeader(t, device).Tokens(TokenClevis)[2].Keyslots[0]) // whose token would only cost time
	before := fileSum(t, device)

	requireClasses(t, decrypt(t, device), nil, nil)
	// fault 44: a server that is down ends the search for none of the others.
	first.Stop()
	requireClasses(t, decrypt(t, device), ErrTangUnreachable, nil)
	second.Stop()
	requireClasses(t, decrypt(t, device), ErrTangUnreachable, ErrTangUnreachable)
	first.Resume()
	second.Resume()
	requireClasses(t, decrypt(t, device), nil, nil)
	requireUnchanged(t, device, before)
}

func requireClasses(t *testing.T, got []error, want ...error) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d results instead of %d: %v", len(got), len(want), got)
	}
	for i := range want {
		if !errors.Is(got[i], want[i]) {
			t.Errorf("token %d: %v, want class %v", i, got[i], want[i])
		}
	}
}

// A server that takes the connection and says nothing is given up.
func TestClevisTimesOut(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	server := tang.Start(t)
	bind(t, device, "tang", fmt.Sprintf(`{"url":%q}`, server.URL()))
	server.Stop()
	silent, err := net.Listen("tcp", strings.TrimPrefix(server.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	clevis := newClevis()
	clevis.Timeout = 500 * time.Millisecond
	token := readHeader(t, device).Tokens(TokenClevis)[0]
	began := time.Now()
	_, err = clevis.Decrypt(t.Context(), token)
	if took := time.Since(began); !errors.Is(err, ErrTangUnreachable) || took > 10*time.Second {
		t.Errorf("Decrypt: %v after %v", err, took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newClevis().Decrypt(ctx, token); !errors.Is(err, context.Canceled) {
		t.Errorf("Decrypt after the end of its context: %v", err)
	}
}

// The pin tpm2, by which another TPM gives nothing. clevis itself takes only a TPM of the kernel, or the one in its environment.
func TestClevisTPM2(t *testing.T) {
	tpm := swtpm.Start(t)
	t.Setenv("TPM2TOOLS_TCTI", tpm.TCTI())
	tpm.Extend(7, "boot")
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	bind(t, device, "tpm2", `{"pcr_bank":"sha256","pcr_ids":"0,7"}`)
	clevis := newClevis()
	clevis.Runner = command.Runner{Env: []string{"TPM2TOOLS_TCTI=" + tpm.TCTI()}}
	header := readHeader(t, device)
	token := header.Tokens(TokenClevis)[0]
	key, err := clevis.Decrypt(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Wipe()
	if err := cryptsetup.Prove(t.Context(), device, header, key, token.Keyslots[0]); err != nil {
		t.Error(err)
	}
	tpm.Extend(7, "another boot")
	_, err = clevis.Decrypt(t.Context(), token)
	if !errors.Is(err, ErrClevis) {
		t.Errorf("Decrypt after the PCR moved: %v", err)
	}
}

// notInstalled says of every program that it is not there.
type notInstalled struct{}

func (notInstalled) RunTo(ctx context.Context, stdin, stdout *os.File, name string, args ...string) error {
	return command.Runner{}.RunTo(ctx, stdin, stdout, name+"-which-is-not-there", args...)
}

func TestClevisIsNotInstalled(t *testing.T) {
	clevis := newClevis()
	clevis.Runner = notInstalled{}
	_, err := clevis.Decrypt(t.Context(), clevisToken(t, tangHeader("http://127.0.0.1:1")))
	if !errors.Is(err, ErrClevisMissing) {
		t.Errorf("Decrypt: %v", err)
	}
}

// header is the protected header of a JWE.
type jweHeader map[string]any

func tangHeader(url string) jweHeader {
	return jweHeader{
		"alg": "ECDH-ES", "enc": "A256GCM", "kid": "abc", "epk": map[string]any{"crv": "P-521"},
		"clevis": map[string]any{"pin": "tang", "tang": map[string]any{"url": url, "adv": map[string]any{}}},
	}
}

func tpm2Header(settings map[string]any) jweHeader {
	return jweHeader{"alg": "dir", "clevis": map[string]any{"pin": "tpm2", "tpm2": settings}}
}

func sssHeader(shares ...any) jweHeader {
	return jweHeader{"alg": "dir", "clevis": map[string]any{"pin": "sss", "sss": map[string]any{"t": 1, "p": "abc", "jwe": shares}}}
}

func (h jweHeader) encode(t testing.TB) string {
	t.Helper()
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func (h jweHeader) compact(t testing.TB) string { return h.encode(t) + "..aXY.dGV4dA.dGFn" }

func clevisToken(t testing.TB, h jweHeader) luks2.Token {
	t.Helper()
	return luks2.Token{Type: TokenClevis, Keyslots: []int{1}, Raw: json.RawMessage(fmt.Sprintf(
		`{"type":"clevis","keyslots":["1"],"jwe":{"protected":%q,"encrypted_key":"","iv":"aXY","ciphertext":"dGV4dA","tag":"dGFn"}}`, h.encode(t)))}
}

// Of what the scripts of clevis would put into a command line nothing gets there that clevis would not have written.
func TestClevisTokenIsRefused(t *testing.T) {
	good := map[string]any{"hash": "sha256", "key": "ecc", "jwk_pub": "AC4", "jwk_priv": "AO4"}
	with := func(name string, value any) map[string]any {
		settings := map[string]any{name: value}
		for name, value := range good {
			if settings[name] == nil {
				settings[name] = value
			}
		}
		return settings
	}
	deep := tangHeader("http://a")
	for range maxPins {
		deep = sssHeader(deep.compact(t))
	}
	for name, test := range map[string]struct {
		header jweHeader
		class  error
	}{
		"good tang":           {tangHeader("http://tang.example:8080/x"), nil},
		"good without scheme": {tangHeader("tang"), nil},
		"good underscore":     {tangHeader("http://_a.tang_1.example"), nil}, // as Docker and NetBIOS name hosts
		"good IPv6":           {tangHeader("https://[fe80::1]:80"), nil},
		"good tpm2":           {tpm2Header(with("pcr_ids", "0,7")), nil},
		"good sss":            {sssHeader(tangHeader("http://a").compact(t), tpm2Header(good).compact(t)), nil},

		"option for curl":         {tangHeader("-K/etc/passwd"), ErrToken},
		"file for curl":           {tangHeader("file:///etc/shadow"), ErrToken},
		"line break in the URL":   {tangHeader("http://a\n-o/etc/passwd"), ErrToken},
		"blank in the URL":        {tangHeader("http://a -o/etc/passwd"), ErrToken},
		"password in the URL":     {tangHeader("http://user:password@a"), ErrToken},
		"path as name of the key": {jweHeader{"kid": "../x", "epk": map[string]any{"crv": "P-521"}, "clevis": tangHeader("http://a")["clevis"]}, ErrToken},
		"curve":                   {jweHeader{"kid": "x", "epk": map[string]any{"crv": `P","x":"`}, "clevis": tangHeader("http://a")["clevis"]}, ErrToken},
		"options for tpm2_unseal": {tpm2Header(with("pcr_ids", "0 -o /etc/shadow")), ErrToken},
		"PCRs that are no text":   {tpm2Header(with("pcr_ids", []int{0})), ErrToken},
		"bank":                    {tpm2Header(with("pcr_bank", "sha256:0 -o /x")), ErrToken},
		"unknown setting":         {tpm2Header(with("policy_path", "/etc/shadow")), ErrTokenUnsupported},
		"unknown pin":             {jweHeader{"clevis": map[string]any{"pin": "null", "null": map[string]any{}}}, ErrTokenUnsupported},
		"path as pin":             {jweHeader{"clevis": map[string]any{"pin": "../../tmp/x", "../../tmp/x": map[string]any{}}}, ErrTokenUnsupported},
		"no pin":                  {jweHeader{"alg": "dir"}, ErrToken},
		"settings of another pin": {jweHeader{"clevis": map[string]any{"pin": "tpm2", "tang": map[string]any{}}}, ErrToken},
		"two settings":            {jweHeader{"clevis": map[string]any{"pin": "tpm2", "tpm2": good, "tang": map[string]any{}}}, ErrToken},
		"bad share":               {sssHeader(tangHeader("-o/x").compact(t)), ErrToken},
		"share that is no JWE":    {sssHeader("abc"), ErrToken},
		"share that is no text":   {sssHeader(1), ErrToken},
		"no shares":               {sssHeader(), ErrToken},
		"share of an unknown pin": {sssHeader(jweHeader{"clevis": map[string]any{"pin": "pkcs11", "pkcs11": map[string]any{}}}.compact(t)), ErrTokenUnsupported},
		"endless shares":          {deep, ErrToken},
	} {
		_, err := parseClevis(clevisToken(t, test.header).Raw)
		if !errors.Is(err, test.class) || test.class == nil && err != nil {
			t.Errorf("%s: %v, want class %v", name, err, test.class)
		}
	}
}

func TestClevisTokenIsMalformed(t *testing.T) {
	good := string(clevisToken(t, tangHeader("http://a")).Raw)
	if _, err := parseClevis([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{`"jwe":{`, `"jwe":[{`}, {`"jwe":`, `"jwt":`}, {`"tag":"dGFn"`, `"tag":"dGFn="`}, {`"tag":"dGFn"`, `"tag":"d+Fn"`},
		{`"tag":"dGFn"`, `"tag":1`}, {`"tag":"dGFn"`, `"tag":"dGFn","aad":""`}, {`"tag":"dGFn"`, `"tag":"dGFn","tag":"dGFn"`},
		{`"iv":"aXY"`, `"iv":"aXY.x"`}, {`,"iv":"aXY"`, ``}, {`{"type"`, `{"extra":1,"type"`}, {`"protected":"e`, `"protected":"x`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%v changes nothing", change)
		}
		if _, err := parseClevis([]byte(bad)); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzClevisToken(f *testing.F) {
	f.Add([]byte(clevisToken(f, tangHeader("http://a")).Raw))
	f.Add([]byte(clevisToken(f, sssHeader(tangHeader("http://a").compact(f), tpm2Header(map[string]any{"pcr_ids": "7"}).compact(f))).Raw))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseClevis(raw)
		if err == nil && (len(s.pins) == 0 || strings.Count(s.compact, ".") != 4) {
			t.Errorf("%q gives %q with pins %q", raw, s.compact, s.pins)
		}
		if err != nil && !errors.Is(err, ErrToken) && !errors.Is(err, ErrTokenUnsupported) {
			t.Errorf("%q: %v", raw, err)
		}
	})
}
