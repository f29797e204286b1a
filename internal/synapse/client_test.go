package synapse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/health"
)

const (
	token      = "s3cret-as-token"
	adminToken = "s3cret-admin-token"
)

func tokenFile(t *testing.T, contents string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(name, []byte(contents), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// answering returns a client of a server that gives one answer to every request.
func answering(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return NewClient(server.URL+"/", tokenFile(t, token+"\n"), tokenFile(t, adminToken+"\n"))
}

func answer(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestUpload(t *testing.T) {
	picture := []byte("\x89PNG…")
	client := answering(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(body, picture) || r.ContentLength != int64(len(picture)) {
			t.Errorf("the body is %q of length %d, %v", body, r.ContentLength, err)
		}
		if r.Method+" "+r.URL.Path != "POST /_matrix/media/v3/upload" {
			t.Errorf("the request is %s %s", r.Method, r.URL)
		}
		if r.Header.Get("Authorization") != "Bearer "+token || r.Header.Get("Content-Type") != "image/png" {
			t.Errorf("the headers are %v", r.Header)
		}
		answer(200, "application/json", `{"content_uri":"mxc://hs.test/abcdEFGHijklMNOPqrstUVWX"}`)(w, r)
	})
	uri, err := client.Upload(t.Context(), picture)
	if err != nil || uri != "mxc://hs.test/abcdEFGHijklMNOPqrstUVWX" {
		t.Errorf("Upload returned %q, %v", uri, err)
	}
}

func TestThumbnail(t *testing.T) {
	client := answering(t, func(w http.ResponseWriter, r *http.Request) {
		want := "GET /_matrix/client/v1/media/thumbnail/hs.test:8448/abcdEFGH?width=32&height=32&method=crop"
		if have := r.Method + " " + r.URL.String(); have != want {
			t.Errorf("the request is %s, want %s", have, want)
		}
		// With a validator Synapse would answer 304 without a look at its store.
		if r.Header.Get("Authorization") != "Bearer "+token || r.Header.Get("If-None-Match") != "" {
			t.Errorf("the headers are %v", r.Header)
		}
		answer(200, "image/png", "picture")(w, r)
	})
	contents, err := client.Thumbnail(t.Context(), "mxc://hs.test:8448/abcdEFGH")
	if err != nil || string(contents) != "picture" {
		t.Errorf("Thumbnail returned %q, %v", contents, err)
	}
}

// What Synapse and the proxies before it answer, by class.
func TestErrorClasses(t *testing.T) {
	tests := []struct {
		name    string
		handler http.HandlerFunc
		class   error
		reason  string
		text    string
	}{
		{"no token", answer(401, "application/json", `{"errcode":"M_MISSING_TOKEN","error":"Missing access token"}`),
			ErrUnauthorized, "unauthorized", "401 Unauthorized): M_MISSING_TOKEN"},
		{"unknown token", answer(401, "application/json", `{"errcode":"M_UNKNOWN_TOKEN"}`),
			ErrUnauthorized, "unauthorized", "M_UNKNOWN_TOKEN"},
		{"forbidden", answer(403, "application/json", `{"errcode":"M_FORBIDDEN"}`), ErrUnauthorized, "unauthorized", "M_FORBIDDEN"},
		{"store full or read-only", answer(500, "application/json", `{"errcode":"M_UNKNOWN","error":"Internal server error"}`),
			ErrRefused, "refused", "500 Internal Server Error): M_UNKNOWN"},
		{"uploaded to a full store", answer(400, "application/json", `{"errcode":"M_UNKNOWN","error":"Cannot find any thumbnails"}`),
			ErrRefused, "refused", "400"},
		{"original gone", answer(404, "application/json", `{"errcode":"M_NOT_FOUND"}`), ErrRefused, "refused", "M_NOT_FOUND"},
		{"proxy without Synapse", answer(502, "text/html", "<h1>Bad Gateway</h1>"), ErrUnreachable, "synapse_unreachable", "502 Bad Gateway"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://evil.test/", 302) },
			ErrRefused, "refused", "302 Found"},
		{"odd error code", answer(400, "application/json", `{"errcode":"M_X\n[+]write ok"}`), ErrRefused, "refused", "(400 Bad Request)"},
		{"no image", answer(200, "text/html", "<html>"), ErrNotImage, "not_image", `content type "text/html"`},
		{"endless image", answer(200, "image/png", strings.Repeat("x", maxImage+1)), ErrRefused, "refused", "more than"},
		{"broken off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
		}, ErrNotImage, "not_image", "unexpected EOF"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := answering(t, test.handler).Thumbnail(t.Context(), "mxc://hs.test/abcdEFGH")
			requireClass(t, err, test.class, test.reason)
			if !strings.Contains(err.Error(), test.text) || strings.ContainsAny(err.Error(), "\n<") {
				t.Errorf("the error is %q, want %q in it", err, test.text)
			}
		})
	}
}

func requireClass(t *testing.T, err, class error, reason string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || !errors.Is(err, class) || e.Reason() != reason {
		t.Fatalf("have %v, want class %v and reason %q", err, class, reason)
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("the error shows the token: %v", err)
	}
}

func TestDelete(t *testing.T) {
	client := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if have, want := r.Method+" "+r.URL.String(), "DELETE /_synapse/admin/v1/media/hs.test:8448/abcdEFGH"; have != want {
			t.Errorf("the request is %s, want %s", have, want)
		}
		if r.Header.Get("Authorization") != "Bearer "+adminToken {
			t.Errorf("the headers are %v", r.Header)
		}
		answer(200, "application/json", `{"deleted_media":["abcdEFGH"],"total":1}`)(w, r)
	})
	if err := client.Delete(t.Context(), "mxc://hs.test:8448/abcdEFGH"); err != nil {
		t.Error(err)
	}
}

// What is not there, and what was another server's, is deleted; what only some of the way to Synapse refuses is not.
func TestDeleteAnswers(t *testing.T) {
	const uri = "mxc://hs.test/abcdEFGH"
	tests := []struct {
		name   string
		status int
		body   string
		class  error
		reason string
	}{
		{"gone", 404, `{"errcode":"M_NOT_FOUND","error":"Unknown media"}`, nil, ""},
		{"another server's", 400, `{"errcode":"M_UNKNOWN","error":"Can only delete local media"}`, nil, ""},
		{"no admin", 403, `{"errcode":"M_FORBIDDEN","error":"You are not a server admin"}`, ErrUnauthorized, "unauthorized"},
		{"a worker without the API", 404, `{"errcode":"M_UNRECOGNIZED"}`, ErrRefused, "refused"},
		{"a proxy without the API", 404, "<html>", ErrRefused, "refused"},
		{"plain HTTP to a TLS port of nginx", 400, "<html>", ErrRefused, "refused"},
		{"not unlinked", 200, `{"deleted_media":[],"total":0}`, ErrRefused, "refused"},
		{"odd", 200, "<html>", ErrRefused, "refused"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := answering(t, answer(test.status, "application/json", test.body)).Delete(t.Context(), uri)
			if test.class == nil && err == nil {
				return
			}
			requireClass(t, err, test.class, test.reason)
		})
	}
	requireClass(t, answering(t, answer(200, "", "")).Delete(t.Context(), "abcdEFGH"), ErrRefused, "refused")
}

// Without the token of an admin nothing is asked.
func TestDeleteWithoutAdminToken(t *testing.T) {
	if err := NewClient("http://127.0.0.1:1", "/nowhere", "").Delete(t.Context(), "mxc://hs.test/abcdEFGH"); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func TestUploadOddAnswers(t *testing.T) {
	for _, body := range []string{"", "{}", "[]", `{"content_uri":7}`, `{"content_uri":"http://hs.test/x"}`, `{"content_uri":"mxc://hs.test/a/b"}`} {
		_, err := answering(t, answer(200, "application/json", body)).Upload(t.Context(), []byte("x"))
		requireClass(t, err, ErrRefused, "refused")
	}
}

// fault 73
func TestSynapseDown(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	client := NewClient("http://"+listener.Addr().String(), tokenFile(t, token), "")
	_, err = client.Thumbnail(t.Context(), "mxc://hs.test/abcdEFGH")
	requireClass(t, err, ErrUnreachable, "synapse_unreachable")
}

// fault 73: it is Synapse that is late, whatever time the probe has, and not the probe.
func TestSynapseSlow(t *testing.T) {
	release := make(chan struct{})
	hang := func(http.ResponseWriter, *http.Request) { <-release }
	begin := func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-release
	}
	clients := []*Client{answering(t, hang), answering(t, begin)}
	t.Cleanup(func() { close(release) }) // before the server waits for its handlers
	for _, client := range clients {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := client.Upload(ctx, []byte("x"))
		requireClass(t, err, ErrUnreachable, "synapse_unreachable")
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			t.Errorf("the error is %v, that of the probe %v", err, ctx.Err())
		}
	}
}

// The classes are reasons that the thumbnail probe has.
func TestReasonsAreTheProbes(t *testing.T) {
	var _ health.MediaServer = (*Client)(nil)
	for _, class := range []error{ErrUnreachable, ErrBlocked, ErrUnauthorized, ErrRefused, ErrNotImage} {
		reason := health.ReasonOf(fmt.Errorf("wrapped: %w", &Error{Class: class}))
		if !slices.Contains(health.Reasons(health.Thumbnail), reason) {
			t.Errorf("%v has reason %q, which the probe does not", class, reason)
		}
	}
}

// The token is read at each request: a new one needs no restart.
func TestTokenFile(t *testing.T) {
	var seen string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Get("Authorization")
		answer(200, "image/png", "x")(w, r)
	}))
	t.Cleanup(server.Close)
	file := tokenFile(t, "first\n")
	client := NewClient(server.URL, file, file)
	for _, want := range []string{"first", "second"} {
		if err := os.WriteFile(file, []byte(want+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Thumbnail(t.Context(), "mxc://hs.test/abcdEFGH"); err != nil || seen != "Bearer "+want {
			t.Errorf("the server saw %q, %v", seen, err)
		}
		// This server does not know how to delete.
		if err := client.Delete(t.Context(), "mxc://hs.test/abcdEFGH"); err == nil || seen != "Bearer "+want {
			t.Errorf("the server saw %q, %v", seen, err)
		}
	}
}

func TestUnusableTokenFile(t *testing.T) {
	tests := map[string]string{
		"missing":   filepath.Join(t.TempDir(), "missing"),
		"directory": t.TempDir(),
		"empty":     tokenFile(t, "\n"),
		"two lines": tokenFile(t, token+"\nmore"),
		"control":   tokenFile(t, token+"\x00"),
		"huge":      tokenFile(t, strings.Repeat(token, 1000)),
		"public":    publicFile(t),
	}
	for name, file := range tests {
		t.Run(name, func(t *testing.T) {
			client := NewClient("http://127.0.0.1:1", file, file)
			_, err := client.Upload(t.Context(), nil)
			requireClass(t, err, ErrUnauthorized, "unauthorized")
			requireClass(t, client.Delete(t.Context(), "mxc://hs.test/abcdEFGH"), ErrUnauthorized, "unauthorized")
			requireClass(t, client.CheckToken(), ErrUnauthorized, "unauthorized")
		})
	}
}

func TestCheckToken(t *testing.T) {
	if err := NewClient("http://127.0.0.1:1", tokenFile(t, token+"\n"), "").CheckToken(); err != nil {
		t.Error(err)
	}
}

// publicFile is a token that every user can read.
func publicFile(t *testing.T) string {
	t.Helper()
	name := tokenFile(t, token+"\n")
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func FuzzSplitURI(f *testing.F) {
	for _, seed := range []string{"mxc://hs.test/abc", "mxc://", "mxc://a/b/c", "mxc://../..", "mxc://[::1]:8448/x?y#z"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		server, id, err := splitURI(uri)
		if err == nil && "mxc://"+server+"/"+id != uri {
			t.Errorf("%q is split into %q and %q", uri, server, id)
		}
	})
}

// A homeserver is told from whatever else listens there, without a token; one that does not take the token itself from a proxy.
func TestReachAndIdentify(t *testing.T) {
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		reach   error
		disowns bool
	}{
		"homeserver":     {answer(200, "application/json", `{"versions":["v1.1","v1.11"]}`), nil, false},
		"worker":         {answer(404, "application/json", `{"errcode":"M_UNRECOGNIZED"}`), nil, false},
		"another server": {answer(200, "text/html", `<html>`), ErrRefused, false},
		"no versions":    {answer(200, "application/json", `{}`), ErrRefused, false},
		"not found":      {answer(404, "text/html", `<html>`), ErrRefused, false},
		"down":           {answer(502, "text/html", `<html>`), ErrUnreachable, false},
		"proxy":          {answer(403, "text/html", `<html>`), ErrUnauthorized, false},
		"unknown token":  {answer(401, "application/json", `{"errcode":"M_UNKNOWN_TOKEN"}`), ErrUnauthorized, true},
	} {
		client := answering(t, func(w http.ResponseWriter, r *http.Request) {
			if knows := r.Header.Get("Authorization") != ""; knows != strings.HasSuffix(r.URL.Path, "/whoami") || r.Method != http.MethodGet {
				t.Errorf("%s %s, token %t", r.Method, r.URL, knows)
			}
			test.handler(w, r)
		})
		if err := client.Reach(t.Context()); !errors.Is(err, test.reach) || (err == nil) != (test.reach == nil) {
			t.Errorf("%s: %v", name, err)
		}
		refused, ok := errors.AsType[*Error](client.Identify(t.Context()))
		if (ok && refused.Disowns()) != test.disowns {
			t.Errorf("%s: %v", name, refused)
		}
	}
}

// A Synapse that the unit does not let the daemon reach is not down.
func TestBlocked(t *testing.T) {
	denied := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", unix.EPERM)}
	asking := &net.OpError{Op: "write", Net: "udp", Err: os.NewSyscallError("write", unix.EPERM)}
	for name, test := range map[string]struct {
		fails  error
		class  error
		reason string
	}{
		"denied":          {denied, ErrBlocked, "synapse_blocked"},
		"its name denied": {&net.OpError{Op: "dial", Err: &net.DNSError{Err: asking.Error(), Name: "hs.test"}}, ErrBlocked, "synapse_blocked"},
		"no such name":    {&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "hs.test"}}, ErrUnreachable, "synapse_unreachable"},
		"nobody there":    {os.NewSyscallError("connect", unix.ECONNREFUSED), ErrUnreachable, "synapse_unreachable"},
	} {
		client := NewClient("http://hs.test", tokenFile(t, token), "")
		client.http.Transport = &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, test.fails }}
		_, err := client.Upload(t.Context(), nil)
		t.Log(name)
		requireClass(t, err, test.class, test.reason)
	}
}
