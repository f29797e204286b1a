package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/api"
	"luksmediad/pkg/health"
)

// do sends a request whose answer the client checks against the description.
func do(t *testing.T, client *http.Client, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for pair := range slices.Chunk(header, 2) {
		request.Header.Set(pair[0], pair[1])
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(text)
}

func problem(t *testing.T, text string) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return p
}

func TestReadOnlyRoutes(t *testing.T) {
	s := serve(t, newDaemon())
	for _, healthy := range []bool{true, false} {
		s.makeHealthy()
		want := http.StatusOK
		if !healthy {
			s.board.Set(health.Unlock, health.Fail, "tpm_policy", "PCR 7 moved")
			want = http.StatusServiceUnavailable
		}
		for _, client := range []*http.Client{s.overTCP(t), s.overControl(t)} {
			for _, c := range []struct {
				path string
				want int
				mark string
			}{
				{"/livez", 200, "ok"},
				{"/livez?verbose", 200, "livez check passed"},
				{"/readyz?verbose", want, "unlock"},
				{"/healthz?verbose=1&exclude=thumbnail", want, "unlock"},
				{"/healthz?exclude=nonsense", want, "nonsense"},
				{"/metrics", 200, "luksmediad_ready"},
				{"/v1/status", 200, `"volume":"synapse-media"`},
				{"/v1/operations", 200, `"action":"migrate"`},
			} {
				response, text := do(t, client, http.MethodGet, "http://localhost"+c.path, "")
				if response.StatusCode != c.want || !strings.Contains(text, c.mark) {
					t.Errorf("healthy=%v %s: %s, want %d with %q\n%s", healthy, c.path, response.Status, c.want, c.mark, text)
				}
				response, text = do(t, client, http.MethodHead, "http://localhost"+c.path, "")
				if response.StatusCode != c.want || text != "" {
					t.Errorf("healthy=%v HEAD %s: %s, want %d without a body: %q", healthy, c.path, response.Status, c.want, text)
				}
			}
		}
	}
}

func TestHealthForMachines(t *testing.T) {
	s := serve(t, newDaemon())
	client := s.overTCP(t)
	for _, path := range []string{"/livez", "/readyz", "/healthz"} {
		for _, accept := range []string{"application/health+json", "application/json"} {
			response, text := do(t, client, http.MethodGet, "http://localhost"+path, "", "Accept", accept)
			if got := response.Header.Get("Content-Type"); got != health.MediaType || !json.Valid([]byte(text)) {
				t.Errorf("%s for %s: %s\n%s", path, accept, got, text)
			}
		}
	}
}

func TestHealthQueryThatIsNotDescribed(t *testing.T) {
	s := serve(t, newDaemon())
	for _, query := range []string{"verbose=no", "verbose=1&verbose=0", "exclude=", "exclude=%3Cscript%3E", "exclude=a&" + strings.Repeat("exclude=b&", 40)} {
		for _, path := range []string{"/livez", "/readyz", "/healthz"} {
			response, text := do(t, s.overTCP(t), http.MethodGet, "http://localhost"+path+"?"+query, "")
			if p := problem(t, text); response.StatusCode != http.StatusBadRequest || p.Class != "bad_request" || p.ExitCode != 2 {
				t.Errorf("%s?%s: %s %+v", path, query, response.Status, p)
			}
		}
	}
}

func TestStatusWithoutAnything(t *testing.T) {
	d := newDaemon()
	d.status = func(context.Context) (api.Status, error) {
		return api.Status{
			Volume: "v", Container: "/v.luks", Phase: api.PhaseOpening, State: api.VolumeStateClosed, Mapping: "/dev/mapper/luksmediad-v",
			Filesystem: api.StatusFilesystemXfs, Mountpoint: "/m", Version: "0", PID: 1, Started: began,
		}, nil
	}
	response, text := do(t, serve(t, d).overTCP(t), http.MethodGet, "http://localhost/v1/status", "")
	if response.StatusCode != http.StatusOK || strings.Contains(text, "null") {
		t.Errorf("%s: %s", response.Status, text)
	}
}

func TestActions(t *testing.T) {
	d := newDaemon()
	s := serve(t, d)
	unlocks := []func(context.Context) (api.Outcome, error){d.unlock, failing(errInUse), failing(errNoKey), failing(errStrange)}
	type want struct {
		status, exitCode int
		class, next      string
	}
	for _, c := range []struct {
		name, path, body string
		unlock           int
		want             want
	}{
		{"unlock", "/v1/unlock", "", 0, want{status: 200}},
		{"unlock in a state that does not allow it", "/v1/unlock", "", 1, want{409, 11, "in_use", "luksmediad lock"}},
		{"unlock without a key", "/v1/unlock", "", 2, want{503, 12, "no_key_fits", "luksmediad unlock"}},
		{"unlock with a fault of the daemon", "/v1/unlock", "", 3, want{500, 1, "internal", ""}},
		{"unlock with a passphrase", "/v1/unlock", `{"passphrase":"correct horse"}`, 0, want{400, 2, "bad_request", ""}},
		{"lock", "/v1/lock", `{"stop_services":true}`, 0, want{status: 200}},
		{"lock while services run", "/v1/lock", `{"stop_services":false}`, 0, want{409, 11, "in_use", "luksmediad lock"}},
		{"lock with no body", "/v1/lock", ``, 0, want{400, 2, "bad_request", ""}},
		{"lock with an empty object", "/v1/lock", `{}`, 0, want{400, 2, "bad_request", ""}},
		{"lock with null", "/v1/lock", `null`, 0, want{400, 2, "bad_request", ""}},
		{"lock with a misspelt member", "/v1/lock", `{"stop_services":true,"stop_service":true}`, 0, want{400, 2, "bad_request", ""}},
		{"lock with a wrong type", "/v1/lock", `{"stop_services":"yes"}`, 0, want{400, 2, "bad_request", ""}},
		{"lock with two values", "/v1/lock", `{"stop_services":true}{}`, 0, want{400, 2, "bad_request", ""}},
		{"lock with broken JSON", "/v1/lock", `{"stop_services":`, 0, want{400, 2, "bad_request", ""}},
		{"lock with too much", "/v1/lock", `{"stop_services":true` + strings.Repeat(" ", 64<<10) + `}`, 0, want{413, 2, "body_too_large", ""}},
		{"grow", "/v1/grow", `{"by_bytes":1024}`, 0, want{status: 200}},
		{"grow as far as a device", "/v1/grow", `{}`, 0, want{status: 200}},
		{"grow twice as much", "/v1/grow", `{"by_bytes":1024,"to_bytes":1024}`, 0, want{400, 2, "bad_request", ""}},
		{"grow by nothing", "/v1/grow", `{"by_bytes":0}`, 0, want{400, 2, "bad_request", ""}},
		{"grow with a key", "/v1/grow", `{"passphrase":"correct horse"}`, 0, want{400, 2, "bad_request", ""}},
		{"migrate", "/v1/migrate", `{"store":"media"}`, 0, want{status: 202}},
		{"migrate as a rehearsal", "/v1/migrate", `{"dry_run":true}`, 0, want{status: 200}},
		{"migrate and remove", "/v1/migrate", `{"purge":true}`, 0, want{400, 2, "bad_request", ""}},
		{"probe", "/v1/probes/write/run", "", 0, want{status: 200}},
		{"probe with a body", "/v1/probes/write/run", "{}", 0, want{400, 2, "bad_request", ""}},
		{"probe that does not exist", "/v1/probes/gate/run", "", 0, want{404, 2, "not_found", ""}},
		{"route that does not exist", "/v1/format", "", 0, want{404, 2, "not_found", ""}},
		{"status with POST", "/v1/status", "", 0, want{405, 2, "method_not_allowed", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d.unlock = unlocks[c.unlock]
			response, text := do(t, s.overControl(t), http.MethodPost, "http://localhost"+c.path, c.body)
			if response.StatusCode != c.want.status {
				t.Fatalf("%s, want %d\n%s", response.Status, c.want.status, text)
			}
			if c.want.status < http.StatusMultipleChoices {
				return
			}
			p := problem(t, text)
			if got := (want{p.Status, p.ExitCode, p.Class, p.Next}); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			if p.Type != "about:blank" || p.Title != http.StatusText(p.Status) || strings.Contains(text, "horse") {
				t.Errorf("%s", text)
			}
		})
	}
}

func failing(err error) func(context.Context) (api.Outcome, error) {
	return func(context.Context) (api.Outcome, error) { return api.Outcome{}, err }
}

func TestMethodNotAllowedSaysWhatIs(t *testing.T) {
	s := serve(t, newDaemon())
	for path, allow := range map[string]string{"/v1/status": "GET, HEAD", "/v1/lock": "POST"} {
		response, _ := do(t, s.overControl(t), http.MethodDelete, "http://localhost"+path, "")
		if got := response.Header.Get("Allow"); response.StatusCode != http.StatusMethodNotAllowed || got != allow {
			t.Errorf("%s: %s, Allow: %q, want %q", path, response.Status, got, allow)
		}
	}
}

func TestBodyMustBeJSON(t *testing.T) {
	s := serve(t, newDaemon())
	for _, contentType := range []string{"text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""} {
		response, text := do(t, s.overControl(t), http.MethodPost, "http://localhost/v1/lock", `{"stop_services":true}`, "Content-Type", contentType)
		if p := problem(t, text); response.StatusCode != http.StatusUnsupportedMediaType || p.Class != "body_not_json" {
			t.Errorf("%q: %s %+v", contentType, response.Status, p)
		}
	}
	if n := s.acted.Load(); n != 0 {
		t.Errorf("the backend acted %d times", n)
	}
}

// What every local user can reach must be useless to a web page, and to whoever wants to act.
func TestReadOnlySideRefuses(t *testing.T) {
	s := serve(t, newDaemon())
	s.makeHealthy()
	port := s.port(t)
	for _, c := range []struct {
		name, method, host, path string
		header                   []string
		want                     int
		class                    string
	}{
		{"its own address", "GET", "127.0.0.1:" + port, "/healthz", nil, 200, ""},
		{"another port, as through a tunnel", "GET", "127.0.0.1:8080", "/healthz", nil, 200, ""},
		{"no port", "GET", "localhost", "/healthz", nil, 200, ""},
		{"capitals", "GET", "LocalHost:" + port, "/healthz", nil, 200, ""},
		{"IPv6", "GET", "[::1]:" + port, "/healthz", nil, 200, ""},
		{"IPv6 without a port", "GET", "[::1]", "/healthz", nil, 200, ""},
		{"rebound name", "GET", "rebound.example:" + port, "/healthz", nil, 421, "host_refused"},
		{"name that begins well", "GET", "localhost.evil.com:" + port, "/healthz", nil, 421, "host_refused"},
		{"address that begins well", "GET", "127.0.0.1.nip.io", "/healthz", nil, 421, "host_refused"},
		{"name that ends well", "GET", "evil.localhost", "/healthz", nil, 421, "host_refused"},
		{"root label", "GET", "localhost.", "/healthz", nil, 421, "host_refused"},
		{"short address", "GET", "127.1:" + port, "/healthz", nil, 421, "host_refused"},
		{"mapped address", "GET", "[::ffff:127.0.0.1]", "/healthz", nil, 421, "host_refused"},
		{"wildcard address", "GET", "0.0.0.0:" + port, "/healthz", nil, 421, "host_refused"},
		{"X-Forwarded-Host cannot lend a name", "GET", "evil.com", "/healthz", []string{"X-Forwarded-Host", "localhost"}, 421, "host_refused"},
		{"X-Forwarded-Host cannot take one", "GET", "localhost", "/healthz", []string{"X-Forwarded-Host", "evil.com"}, 200, ""},
		{"foreign origin", "GET", "localhost", "/healthz", []string{"Origin", "https://evil.com"}, 403, "origin_refused"},
		{"own origin", "GET", "localhost", "/healthz", []string{"Origin", "http://localhost"}, 403, "origin_refused"},
		{"hidden origin", "GET", "localhost", "/healthz", []string{"Origin", "null"}, 403, "origin_refused"},
		{"empty origin", "GET", "localhost", "/healthz", []string{"Origin", ""}, 403, "origin_refused"},
		{"preflight", "OPTIONS", "localhost", "/v1/lock", []string{"Access-Control-Request-Method", "POST"}, 403, "read_only"},
		{"unlock", "POST", "localhost", "/v1/unlock", nil, 403, "read_only"},
		{"lock", "POST", "localhost", "/v1/lock", nil, 403, "read_only"},
		{"grow", "POST", "localhost", "/v1/grow", nil, 403, "read_only"},
		{"migrate", "POST", "localhost", "/v1/migrate", nil, 403, "read_only"},
		{"probe", "POST", "localhost", "/v1/probes/write/run", nil, 403, "read_only"},
		{"what does not exist", "DELETE", "localhost", "/v2", nil, 403, "read_only"},
		{"method in disguise", "GET", "localhost", "/v1/lock", []string{"X-HTTP-Method-Override", "POST"}, 405, "method_not_allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			response, text := do(t, s.overTCP(t), c.method, "http://"+c.host+c.path, "", c.header...)
			if response.StatusCode != c.want {
				t.Fatalf("%s, want %d\n%s", response.Status, c.want, text)
			}
			if c.class != "" && problem(t, text).Class != c.class {
				t.Errorf("%s, want class %s", text, c.class)
			}
			if got := response.Header.Get("Access-Control-Allow-Origin"); got != "" {
				t.Errorf("CORS for %q", got)
			}
		})
	}
	if n := s.acted.Load(); n != 0 {
		t.Errorf("the backend acted %d times", n)
	}
}

func TestControlSideRefusesWebPages(t *testing.T) {
	s := serve(t, newDaemon())
	response, text := do(t, s.overControl(t), http.MethodPost, "http://localhost/v1/unlock", "", "Origin", "http://localhost")
	if response.StatusCode != http.StatusForbidden || problem(t, text).Class != "origin_refused" || s.acted.Load() != 0 {
		t.Errorf("%s: %s, acted %d times", response.Status, text, s.acted.Load())
	}
}

// Whatever comes over TCP, nothing acts, nothing panics, and a refusal is a problem.
func FuzzReadOnly(f *testing.F) {
	f.Add("GET", "/healthz?verbose", "localhost", "")
	f.Add("POST", "/v1/unlock", "127.0.0.1:10165", "")
	f.Add("GET", "/v1/probes/%2e%2e/run", "[::1]", "null")
	f.Add("HEAD", "//v1/lock?x=%zz", "", "https://evil.com")
	d := newDaemon()
	handler := d.server().ReadOnly
	f.Fuzz(func(t *testing.T, method, target, host, origin string) {
		request, err := http.NewRequest(method, "http://localhost/", nil)
		if err != nil {
			return
		}
		if request.URL, err = request.URL.Parse(target); err != nil {
			return
		}
		request.Host, request.Body = host, http.NoBody
		if origin != "" {
			request.Header.Set("Origin", origin)
		}
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		if d.acted.Load() != 0 {
			t.Fatalf("%s %q acted", method, target)
		}
		if recorder.Code != http.StatusOK && recorder.Code != http.StatusServiceUnavailable {
			var p api.Problem
			if err := json.Unmarshal(recorder.Body.Bytes(), &p); err != nil || p.Status != recorder.Code || p.Class == "" {
				t.Errorf("%s %q: %d %s", method, target, recorder.Code, fmt.Sprint(recorder.Body))
			}
		}
	})
}
