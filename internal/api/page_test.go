package api_test

import (
	"context"
	"image"
	_ "image/png" // what Chromium writes
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/api"
	"luksmediad/pkg/health"
)

// wicked is what a server or a file's name may smuggle into a condition's text.
const wicked = `<script>document.title="owned"</script><img src="http://evil.example/x" onerror="document.title='owned'">`

// onCall is a daemon in trouble, as the page has to show it.
func onCall() *daemon {
	d := newDaemon()
	d.board = health.NewBoard(health.Options{Advise: func(code health.Code, _ health.Reason, _ string) string { return "luksmediad fix " + string(code) }})
	d.makeHealthy()
	d.board.Set(health.Ciphertext, health.Fail, health.ReasonPlaintext, "the raw bytes are the file's own: "+wicked)
	d.board.Set(health.Thumbnail, health.Fail, health.ReasonSynapseUnreachable, "no answer from http://127.0.0.1:8008")
	d.board.Set(health.Space, health.OK, "", "12 % of the space in use")
	d.status = func(context.Context) (api.Status, error) {
		status := fullStatus()
		status.Conditions = api.Conditions(d.board.Snapshot())
		status.Protection = api.Protection{Level: "snapshot", Text: "the key is sealed in the TPM", Root: "plain", Warning: "root filesystem is neither encrypted nor verified"}
		return status, nil
	}
	return d
}

func TestPage(t *testing.T) {
	d := onCall()
	s := serve(t, d)
	response, text := do(t, s.overTCP(t), http.MethodGet, "http://localhost/", "")
	if response.StatusCode != http.StatusOK {
		t.Fatal(response.Status)
	}
	for _, want := range []string{
		"<h1>synapse-media: failed</h1>", `<code>luksmediad fix ciphertext</code>`, `<code>luksmediad fix thumbnail</code>`,
		`<td class="status failed">failed</td><td>plaintext: the raw bytes`, `<td class="status degraded">degraded</td><td>synapse_unreachable`,
		"keyslot 1", "tpm_policy: PCR 7 moved", "<strong>snapshot</strong>: the key is sealed in the TPM", "50GiB", "/srv/media_store",
		"<tr><td>filesystem</td><td>/var/lib/luksmediad/volumes/synapse-media</td><td>12 % of the space in use</td></tr>",
		`href="/healthz?verbose"`, `href="/metrics"`, `href="/v1/status"`, "<code>" + api.Runbook + "</code>",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	if strings.Contains(text, "<script") || strings.Contains(text, "<img") || strings.Contains(text, "ZgotmplZ") {
		t.Errorf("not escaped:\n%s", text)
	}
	policy := response.Header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	d.makeHealthy()
	if _, text := do(t, s.overTCP(t), http.MethodGet, "http://localhost/", ""); !strings.Contains(text, "all is well") || strings.Contains(text, "type:") {
		t.Error(text)
	}
	d.board.Set(health.Space, health.Warn, health.ReasonLowSpace, "little space: 4 % left")
	if _, text := do(t, s.overTCP(t), http.MethodGet, "http://localhost/", ""); !strings.Contains(text, "<td>little space: 4 % left</td></tr>") {
		t.Errorf("no room is not shown: %s", text)
	}
	d.board.Set(health.Unlock, health.Fail, "no_key_fits", "no key source opens it")
	if _, text := do(t, s.overTCP(t), http.MethodGet, "http://localhost/", ""); !strings.Contains(text, `for <a href="#unlock">unlock</a>`) {
		t.Errorf("a cause is not named: %s", text)
	}
}

func TestPageOfADaemonAtFault(t *testing.T) {
	d := newDaemon()
	d.status = func(context.Context) (api.Status, error) { return api.Status{}, errStrange }
	response, text := do(t, serve(t, d).overTCP(t), http.MethodGet, "http://localhost/", "")
	if p := problem(t, text); response.StatusCode != http.StatusInternalServerError || p.Class != "internal" {
		t.Errorf("%s: %s", response.Status, text)
	}
}

// chromium runs one headless visit with a profile of its own.
func chromium(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	profile := t.TempDir()
	command := exec.CommandContext(ctx, "chromium", append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-breakpad", "--hide-scrollbars",
		"--user-data-dir=" + profile, "--window-size=1000,1500", "--timeout=20000",
	}, args...)...)
	command.Env = append(os.Environ(), "HOME="+profile, "XDG_CONFIG_HOME="+profile, "XDG_CACHE_HOME="+profile)
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// A real browser applies the page's style under its policy, in light and in dark, and runs nothing.
func TestPageInABrowser(t *testing.T) {
	s := serve(t, onCall())
	url := "http://" + s.address + "/"
	if dom := chromium(t, "--dump-dom", url); !strings.Contains(dom, "synapse-media: failed") || strings.Contains(dom, "owned\"</title>") ||
		strings.Contains(dom, "<title>owned") {
		t.Errorf("the browser sees\n%s", dom)
	}
	dir := t.TempDir()
	if kept := os.Getenv("LUKSMEDIAD_SCREENSHOTS"); kept != "" {
		dir = kept
	}
	for scheme, setting := range map[string]string{"light": "1", "dark": "0"} {
		path := filepath.Join(dir, scheme+".png")
		chromium(t, "--blink-settings=preferredColorScheme="+setting, "--screenshot="+path, url)
		picture := decode(t, path)
		background := brightness(picture, 1, 1)
		if (scheme == "light") != (background > 0x8000) {
			t.Errorf("%s: the background has brightness %x", scheme, background)
		}
		if !hasRedBar(picture) {
			t.Errorf("%s: nothing shows that a condition fails: the style does not apply", scheme)
		}
	}
}

func decode(t *testing.T, path string) image.Image {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	picture, _, err := image.Decode(file)
	if err != nil {
		t.Fatal(err)
	}
	return picture
}

func brightness(picture image.Image, x, y int) uint32 {
	r, g, b, _ := picture.At(x, y).RGBA()
	return (r + g + b) / 3
}

// hasRedBar looks for the bar at the left of the verdict.
func hasRedBar(picture image.Image) bool {
	red := 0
	bounds := picture.Bounds()
	for y := bounds.Min.Y; y < 200; y++ {
		for x := bounds.Min.X; x < 100; x++ {
			if r, g, b, _ := picture.At(x, y).RGBA(); r > 2*g && r > 2*b {
				red++
			}
		}
	}
	return red > 200
}
