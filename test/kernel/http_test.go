//go:build kernel

package kernel

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"luksmediad/internal/api"
)

const address = "http://127.0.0.1:10165"

// client gives up before the test does.
var client = &http.Client{Timeout: patience}

// get asks the daemon over TCP.
func get(t *testing.T, path string, accept ...string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header["Accept"] = accept
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

// control asks over the Unix socket, where what acts is.
func control(t *testing.T, path, body string) (int, string) {
	t.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", api.ControlSocket)
	}
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	answer, err := (&http.Client{Transport: transport, Timeout: patience}).Post("http://localhost"+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(content)
}

// requireHealthy wants 200 from the three health routes, once the probes have run.
func requireHealthy(t *testing.T) {
	t.Helper()
	eventually(t, "/healthz to answer 200 and to know the ciphertext", func() bool {
		code, body := get(t, "/healthz?verbose")
		return code == http.StatusOK && strings.Contains(body, "[+]ciphertext ok")
	})
	for _, path := range []string{"/livez", "/readyz"} {
		if code, body := get(t, path); code != http.StatusOK {
			t.Errorf("%s: %d\n%s", path, code, body)
		}
	}
}

// requireMetric wants one sample, written as in the exposition format.
func requireMetric(t *testing.T, name string, value int) {
	t.Helper()
	code, body := get(t, "/metrics")
	sample := fmt.Sprintf("\n%s %d\n", name, value)
	if code != http.StatusOK || !strings.Contains(body, sample) {
		t.Errorf("/metrics: %d, no sample %q", code, strings.TrimSpace(sample))
	}
}

// sample is the value of a series.
func sample(t *testing.T, series string) string {
	t.Helper()
	_, body := get(t, "/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
