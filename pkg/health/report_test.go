package health

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"luksmediad/test/golden"
)

// boards are the states that the golden files show.
func boards() map[string]*Board {
	clock := newClock()
	options := Options{Now: clock.Now, Advise: advise, Runbook: "/doc/runbook.md",
		Service: Service{Version: "1", Release: "0.1.0", ID: "luksmediad-media"}}
	starting, good, degraded, failed := NewBoard(options), goodBoard(options), goodBoard(options), goodBoard(options)
	degraded.Set(Store, Fail, ReasonPlaintext, "/srv/media_store has not moved in")
	degraded.Set(Thumbnail, Fail, ReasonSynapseUnreachable, "connection refused")
	failed.Set(Write, OK, "", "4096 bytes written, synced and read back")
	failed.Set(Ciphertext, Fail, ReasonPlaintext, "/srv/media.luks holds bytes of canary in clear at offset 16777216")
	locked := NewBoard(options)
	for _, code := range []Code{Container, Header, Guard, Store} {
		locked.Set(code, OK, "", "")
	}
	locked.Set(Unlock, Fail, "tpm_policy", "PCR 7 has another value than at enrolment")
	clock.advance(4 * time.Second)
	return map[string]*Board{"starting": starting, "good": good, "degraded": degraded, "failed": failed, "locked": locked}
}

func get(t *testing.T, h http.Handler, target string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	request := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, request)
	return recorder
}

func TestGoldenAnswers(t *testing.T) {
	for name, board := range boards() {
		t.Run(name, func(t *testing.T) {
			var all strings.Builder
			for _, target := range []string{"/livez", "/readyz", "/healthz", "/healthz?verbose", "/healthz?verbose&exclude=ciphertext&exclude=moon"} {
				endpoint, _, _ := strings.Cut(target[1:], "?")
				answer := get(t, board.Handler(Endpoint(endpoint)), target)
				all.WriteString("GET " + target + "\n" + answer.Result().Status + "\n" + answer.Body.String() + "\n")
			}
			golden.Compare(t, "testdata/"+name+".txt", all.String())
			answer := get(t, board.Handler(Healthz), "/healthz", "Accept", MediaType)
			golden.Compare(t, "testdata/"+name+".json", indent(t, answer.Body.Bytes()))
		})
	}
}

func indent(t *testing.T, document []byte) string {
	t.Helper()
	var value any
	if err := json.Unmarshal(document, &value); err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + "\n"
}

func TestHeaders(t *testing.T) {
	tests := []struct{ accept, contentType string }{
		{"", "text/plain; charset=utf-8"},
		{"*/*", "text/plain; charset=utf-8"},
		{"text/html, application/json;q=0", "text/plain; charset=utf-8"},
		{"application/health+json", MediaType},
		{"text/html, application/json;q=0.9", MediaType},
	}
	for _, test := range tests {
		answer := get(t, goodBoard(Options{}).Handler(Healthz), "/healthz", "Accept", test.accept)
		if have := answer.Header().Get("Content-Type"); have != test.contentType {
			t.Errorf("Accept %q: Content-Type %q, want %q", test.accept, have, test.contentType)
		}
		if have := answer.Header().Get("Cache-Control"); have != "no-store" {
			t.Errorf("Cache-Control is %q", have)
		}
	}
}

func TestOnlyReads(t *testing.T) {
	recorder := httptest.NewRecorder()
	goodBoard(Options{}).Handler(Healthz).ServeHTTP(recorder, httptest.NewRequest(http.MethodPost, "/healthz", nil))
	if recorder.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered with %d", recorder.Code)
	}
}

// Excluding the only failing condition makes the answer 200; the Board is still unhealthy.
func TestExclude(t *testing.T) {
	board := boards()["failed"]
	if code := get(t, board.Handler(Healthz), "/healthz?exclude=ciphertext").Code; code != http.StatusOK {
		t.Errorf("answered with %d", code)
	}
	if board.Healthy() {
		t.Error("the board is healthy")
	}
}
