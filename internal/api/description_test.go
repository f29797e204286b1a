package api_test

import (
	"bytes"
	"context"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"luksmediad/internal/api"
	"luksmediad/pkg/health"
)

const descriptionFile = "../../api/openapi.yaml"

// description is the API as it is written down.
type description struct {
	document *openapi3.T
	router   routers.Router
}

func readDescription(t testing.TB) description {
	t.Helper()
	read, err := readOnce()
	if err != nil {
		t.Fatal(err)
	}
	return read
}

var readOnce = sync.OnceValues(func() (description, error) {
	document, err := openapi3.NewLoader().LoadFromFile(descriptionFile)
	if err != nil {
		return description{}, err
	}
	document.Servers = nil // so that routes match whatever host the test uses
	router, err := legacy.NewRouter(document, openapi3.EnableExamplesValidation())
	return description{document, router}, err
})

func registerDecoders() {
	openapi3filter.RegisterBodyDecoder(health.MediaType, openapi3filter.JSONBodyDecoder)
	for _, mediaType := range []string{"application/openmetrics-text", "text/html"} {
		openapi3filter.RegisterBodyDecoder(mediaType, openapi3filter.PlainBodyDecoder)
	}
}

// check says how an answer differs from the description. A request that the description does not know may only get a problem.
func (d description) check(request *http.Request, response *http.Response, body []byte) error {
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: request},
		Status:                 response.StatusCode,
		Header:                 response.Header,
		Options:                &openapi3filter.Options{IncludeResponseStatus: true},
	}
	var err error
	input.RequestValidationInput.Route, input.RequestValidationInput.PathParams, err = d.router.FindRoute(request)
	if err != nil || response.StatusCode == http.StatusUnauthorized {
		input.RequestValidationInput.Route = d.anyRoute()
	}
	input.SetBodyBytes(body)
	return openapi3filter.ValidateResponse(request.Context(), input)
}

// anyRoute has nothing but the refusals that every route has.
func (d description) anyRoute() *routers.Route {
	refused := openapi3.NewResponses()
	refused.Set("default", d.document.Components.Responses["Refused"])
	refused.Set("401", d.document.Components.Responses["Unauthenticated"])
	return &routers.Route{Spec: d.document, Operation: &openapi3.Operation{Responses: refused}}
}

// describedTransport fails the test at every answer that does not fit the description.
type describedTransport struct {
	t           *testing.T
	description description
	next        http.RoundTripper
}

func describedClient(t *testing.T, dial func(context.Context, string, string) (net.Conn, error)) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	return &http.Client{Transport: describedTransport{t, readDescription(t), transport}, Timeout: 10 * time.Second}
}

func (d describedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := d.next.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if err := response.Body.Close(); err != nil {
		return nil, err
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	if request.Method != http.MethodHead {
		if err := d.description.check(request, response, body); err != nil {
			d.t.Errorf("%s %s: %s does not fit the description: %v\n%s", request.Method, request.URL, response.Status, err, body)
		}
	}
	if got := response.Header.Get("Cache-Control"); got != "no-store" && response.StatusCode != http.StatusUnauthorized {
		d.t.Errorf("%s %s: Cache-Control is %q", request.Method, request.URL, got)
	}
	return response, nil
}

// The checker itself must be able to refuse, or none of the tests above it could fail.
func TestDescriptionRefuses(t *testing.T) {
	d := readDescription(t)
	request, err := http.NewRequest(http.MethodGet, "http://localhost/v1/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]struct {
		status      int
		mediaType   string
		body, wants string
	}{
		"missing member":   {200, "application/json", `{"volume":"x"}`, "container"},
		"wrong enum":       {500, "application/problem+json", `{"type":"about:blank","title":"x","status":500,"detail":"x","class":"NOT A CLASS","exit_code":1}`, "class"},
		"wrong media type": {200, "text/css", `p {}`, "content"},
		"not a problem":    {404, "text/plain", `404`, "content"},
	} {
		t.Run(name, func(t *testing.T) {
			response := &http.Response{StatusCode: answer.status, Header: http.Header{"Content-Type": {answer.mediaType}}}
			err := d.check(request, response, []byte(answer.body))
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), answer.wants) {
				t.Errorf("got %v, want an error about %q", err, answer.wants)
			}
		})
	}
}

var update = flag.Bool("update", false, "write the generated code anew")

func TestGeneratedCodeIsThatOfTheDescription(t *testing.T) {
	const file = "api.gen.go"
	out := filepath.Join(t.TempDir(), file)
	if *update {
		out = file
	}
	command := exec.CommandContext(t.Context(), "go", "tool", "oapi-codegen", "-config", "oapi-codegen.yaml", "-o", out, descriptionFile)
	if text, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	want, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what %s generates; run go generate", file, descriptionFile)
	}
}

func TestConditionsAreThoseOfTheBoard(t *testing.T) {
	var described []health.Code
	for _, code := range enum(t, "ConditionCode") {
		described = append(described, health.Code(code))
	}
	if !slices.Equal(described, health.Codes()) {
		t.Errorf("described: %v\nthe board: %v", described, health.Codes())
	}
	for _, probe := range enum(t, "ProbeName") {
		if health.Reasons(health.Code(probe)) == nil {
			t.Errorf("%s is described as a probe, but the board has none of that name", probe)
		}
	}
	var words []string
	for _, status := range []health.Status{health.OK, health.Warn, health.Fail, health.Unknown} {
		words = append(words, status.String())
	}
	if described := enum(t, "ConditionStatus"); !slices.Equal(described, words) {
		t.Errorf("described: %v\nthe board: %v", described, words)
	}
}

func enum(t *testing.T, schema string) (words []string) {
	t.Helper()
	for _, word := range readDescription(t).document.Components.Schemas[schema].Value.Enum {
		words = append(words, word.(string))
	}
	return words
}

func TestVersionIsThatOfTheDescription(t *testing.T) {
	if described := readDescription(t).document.Info.Version; described != api.Version {
		t.Errorf("%q, described as %q", api.Version, described)
	}
}

// What acts is what has the tag control, and nothing else: the read-only side goes by the method.
func TestWhatActsIsPost(t *testing.T) {
	for path, item := range readDescription(t).document.Paths.Map() {
		for method, operation := range item.Operations() {
			acts := slices.Contains(operation.Tags, "control")
			if acts != (method == http.MethodPost) {
				t.Errorf("%s %s: tag control: %v", method, path, acts)
			}
			if operation.Summary == "" || operation.Description == "" {
				t.Errorf("%s %s is not described", method, path)
			}
		}
	}
}

func TestConditionsInTheWordsOfTheAPI(t *testing.T) {
	d := newDaemon()
	d.makeHealthy()
	d.board.Set(health.Unlock, health.Fail, "tpm_policy", "PCR 7 moved")
	got := api.Conditions(d.board.Snapshot())
	if len(got) != len(health.Codes()) {
		t.Fatalf("%d conditions, want %d", len(got), len(health.Codes()))
	}
	for _, c := range got {
		if !c.Code.Valid() || !c.Status.Valid() {
			t.Errorf("%+v is not described", c)
		}
		if c.Code == api.ConditionCodeUnlock && (c.Status != api.ConditionStatusFailed || c.Reason != "tpm_policy" || c.Next == "") {
			t.Errorf("unlock is %+v", c)
		}
		if c.Code == api.ConditionCodeMount && c.Cause == "" {
			t.Errorf("mount does not name its cause: %+v", c)
		}
	}
}
