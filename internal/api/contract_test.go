package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"luksmediad/internal/api"
	"luksmediad/pkg/health"
)

// Every route and every answer that is described is given once, and each fits its description (describedTransport).
func TestEveryAnswerIsGiven(t *testing.T) {
	d := newDaemon()
	client := serve(t, d).overControl(t)
	given := map[string]bool{}
	ask := func(method, path, body string) {
		response, _ := do(t, client, method, "http://localhost"+path, body)
		route, _, _ := strings.Cut(path, "?")
		for _, probe := range enum(t, "ProbeName") {
			route = strings.Replace(route, "/"+probe+"/", "/{name}/", 1)
		}
		given[fmt.Sprintf("%s %s %s", method, route, d.describedAs(t, method, route, response.StatusCode))] = true
	}
	for _, healthy := range []bool{true, false} {
		if healthy {
			d.makeHealthy()
		} else {
			d.board.Set(health.Mount, health.Fail, "foreign", "another filesystem is mounted")
		}
		for _, path := range []string{"/livez", "/readyz", "/healthz", "/metrics", "/v1/status", "/v1/operations", "/"} {
			ask("GET", path, "")
			ask("GET", path+"?verbose", "")
			ask("GET", path+"?verbose=no", "")
		}
	}
	d.works = func() ([]api.Operation, error) { return nil, nil }
	ask("GET", "/v1/operations", "")
	d.works = func() ([]api.Operation, error) { return nil, errStrange }
	ask("GET", "/v1/operations", "")
	d.status = func(context.Context) (api.Status, error) { return api.Status{}, errStrange }
	ask("GET", "/v1/status", "")
	ask("GET", "/", "")
	for _, err := range []error{nil, errInUse, errNoKey, errStrange} {
		d.fails(err)
		ask("POST", "/v1/unlock", "")
		ask("POST", "/v1/lock", `{"stop_services":true}`)
		ask("POST", "/v1/grow", `{"by_bytes":1024}`)
		ask("POST", "/v1/migrate", `{"store":"media"}`)
		ask("POST", "/v1/migrate", `{"dry_run":true}`)
		ask("POST", "/v1/probes/write/run", "")
	}
	var want []string
	for path, item := range readDescription(t).document.Paths.Map() {
		for method, operation := range item.Operations() {
			for status := range operation.Responses.Map() {
				want = append(want, fmt.Sprintf("%s %s %s", method, path, status))
			}
		}
	}
	slices.Sort(want)
	var got []string
	for answer := range given {
		if !slices.Contains(answersThatNeedMore(), answer) {
			got = append(got, answer)
		}
	}
	want = slices.DeleteFunc(want, func(answer string) bool { return slices.Contains(answersThatNeedMore(), answer) })
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// answersThatNeedMore: nothing makes the process unhealthy while it answers; a scrape is refused only over TCP, see
// TestReadOnlySideRefuses, and one too many only by the handler of the metrics.
func answersThatNeedMore() []string {
	return []string{"GET /livez 503", "GET /metrics default", "GET /metrics 503"}
}

// describedAs is the key of a response: its status, or default.
func (d *daemon) describedAs(t *testing.T, method, path string, status int) string {
	t.Helper()
	operation := readDescription(t).document.Paths.Value(path).GetOperation(method)
	if key := strconv.Itoa(status); operation.Responses.Value(key) != nil {
		return key
	}
	return "default"
}

// fails makes every action end with an error.
func (d *daemon) fails(err error) {
	if err == nil {
		return
	}
	d.unlock = failing(err)
	d.lock = func(context.Context, api.LockRequest) (api.Outcome, error) { return api.Outcome{}, err }
	d.grow = func(context.Context, api.GrowRequest) (api.Growth, error) { return api.Growth{}, err }
	d.migrate = func(context.Context, api.MigrateRequest) (api.Migration, error) { return api.Migration{}, err }
	d.runProbe = func(context.Context, api.ProbeName) (api.ProbeResult, error) { return api.ProbeResult{}, err }
}

// The server takes exactly the requests that the description takes: what it checks by hand agrees with an OpenAPI validator.
func TestRequestsAreCheckedAsDescribed(t *testing.T) {
	described, control := readDescription(t), newDaemon().server().Control
	rapid.Check(t, func(t *rapid.T) {
		method, target, body := drawRequest(t)
		request := httptest.NewRequest(method, "http://localhost"+target, strings.NewReader(body))
		if body != "" {
			request.Header.Set("Content-Type", "application/json")
		}
		route, parameters, err := described.router.FindRoute(request)
		if err != nil {
			t.Fatal(err)
		}
		want := openapi3filter.ValidateRequest(request.Context(), &openapi3filter.RequestValidationInput{
			Request: request, PathParams: parameters, Route: route, Options: &openapi3filter.Options{MultiError: true},
		})
		answer := httptest.NewRecorder()
		request.Body = io.NopCloser(strings.NewReader(body)) // the validator has read the first
		control.ServeHTTP(deadlines{answer}, request)
		refused := answer.Code == http.StatusBadRequest || answer.Code == http.StatusNotFound
		if refused != (want != nil) {
			t.Fatalf("%s %s %q: the server says %d, the description %v\n%s", method, target, body, answer.Code, want, answer.Body)
		}
	})
}

// deadlines lets the recorder take the deadline that a connection would.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetReadDeadline(time.Time) error { return nil }

func drawRequest(t *rapid.T) (method, target, body string) {
	switch rapid.SampledFrom([]string{"health", "lock", "grow", "migrate", "probe"}).Draw(t, "what") {
	case "grow":
		return http.MethodPost, "/v1/grow", rapid.SampledFrom([]string{
			"", "null", "{}", "[]", "1", `{"to_bytes":1}`, `{"to_bytes":0}`, `{"to_bytes":-1}`, `{"by_bytes":5,"dry_run":true}`, `{"to_bytes":5,"by_bytes":5}`,
			`{"to_bytes":"5GiB"}`, `{"to_bytes":1.5}`, `{"by_bytes":null}`, `{"By_Bytes":5}`, `{"dry_run":1}`, `{"dry_run":false}`, `{"to":5}`,
			`{"to_bytes":9223372036854775807}`, `{"to_bytes":1e30}`,
		}).Draw(t, "body")
	case "migrate":
		return http.MethodPost, "/v1/migrate", rapid.SampledFrom([]string{
			"", "null", "{}", "[]", `"media"`, `{"store":"media"}`, `{"store":1}`, `{"store":null}`, `{"Store":"media"}`, `{"store":"media","dry_run":true}`,
			`{"dry_run":"true"}`, `{"store":"media","purge":true}`,
		}).Draw(t, "body")
	case "lock":
		return http.MethodPost, "/v1/lock", rapid.SampledFrom([]string{
			"", "null", "{}", "[]", "1", `""`, `{"stop_services":true}`, `{"stop_services":false}`, `{"stop_services":null}`, `{"stop_services":1}`,
			`{"stop_services":"true"}`, `{"stop_services":true,"x":1}`, `{"Stop_Services":true}`, `{"stop_services":true,"stop_services":false}`,
			`{`, ` {"stop_services" : true} `,
		}).Draw(t, "body")
	case "probe":
		name := rapid.OneOf(rapid.SampledFrom([]string{"write", "ciphertext", "thumbnail", "Write", "gate", "x"}), rapid.StringMatching(`[a-z]{1,8}`)).Draw(t, "name")
		return http.MethodPost, "/v1/probes/" + name + "/run", ""
	}
	query := url.Values{}
	if rapid.Bool().Draw(t, "verbose") {
		query.Set("verbose", rapid.SampledFrom([]string{"", "1", "true", "0", "no", "TRUE", " "}).Draw(t, "value"))
	}
	for range rapid.SampledFrom([]int{0, 0, 1, 2, 32, 33}).Draw(t, "excluded") {
		query.Add("exclude", rapid.SampledFrom([]string{"write", "thumbnail", "a", "A", "1a", "", "a-b", "a_1", strings.Repeat("a", 32), strings.Repeat("a", 33)}).Draw(t, "code"))
	}
	return http.MethodGet, rapid.SampledFrom([]string{"/livez", "/readyz", "/healthz"}).Draw(t, "path") + "?" + query.Encode(), ""
}

// Nobody who asks can make a series: what grows with requests would fill Prometheus (facts: labels from closed sets).
func TestRandomRequestsAddNoSeries(t *testing.T) {
	d := newDaemon()
	registry := health.NewRegistry(health.NewCollector(d.board, health.CollectorOptions{}))
	server := api.New(api.Backend{Health: d.board, Metrics: health.MetricsHandler(registry), Status: d, Control: d, Operate: d, Explain: explain},
		slog.New(slog.DiscardHandler))
	random := rand.New(rand.NewPCG(1, 2))
	ask := func(handler http.Handler, method, target string) {
		request := httptest.NewRequest(method, "http://localhost/", http.NoBody)
		request.URL = &url.URL{Path: target, RawQuery: "exclude=" + randomWord(random)}
		handler.ServeHTTP(httptest.NewRecorder(), request)
	}
	ask(server.ReadOnly, http.MethodGet, "/metrics")
	before := series(t, registry)
	for range 10_000 {
		method := []string{"GET", "HEAD", "POST", "DELETE", randomWord(random)}[random.IntN(5)]
		target := []string{"/" + randomWord(random), "/metrics", "/healthz", "/v1/probes/" + randomWord(random) + "/run", "/v1/status", "/"}[random.IntN(6)]
		ask([]http.Handler{server.ReadOnly, server.Control}[random.IntN(2)], method, target)
	}
	if after := series(t, registry); after != before {
		t.Errorf("%d series, before %d", after, before)
	}
}

func randomWord(random *rand.Rand) string {
	return strings.ToUpper(strconv.FormatUint(random.Uint64(), 36))
}

func series(t *testing.T, registry prometheus.Gatherer) (n int) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		n += len(family.GetMetric())
	}
	if n < 50 {
		t.Fatal(errors.New("there are hardly any series"))
	}
	return n
}
