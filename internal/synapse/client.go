// Package synapse talks to a Matrix homeserver about one picture, to Docker and to systemd, over D-Bus, about what uses a store, and reads
// homeserver.yaml.
package synapse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	requestTimeout = 5 * time.Second // for a whole request; a thumbnail takes milliseconds
	dialTimeout    = 3 * time.Second
	maxJSON        = 64 << 10 // bytes of an answer or an error
	maxImage       = 1 << 20  // bytes of a thumbnail
)

// thumbnailQuery asks for the smallest of Synapse's default thumbnail_sizes.
const thumbnailQuery = "?width=32&height=32&method=crop"

// Client makes the requests of the thumbnail probe as an application service, the one kind of
// user that needs neither registration nor login (Application Service API, "Identity assertion").
type Client struct {
	base           string
	tokenFile      string
	adminTokenFile string
	http           *http.Client
}

// NewClient makes a client of the server at an http or https URL. The token is the as_token of
// the registration file, the admin token, which may be missing, the access token of a server admin; they are read at each request, so that a
// new one needs no restart.
func NewClient(base, tokenFile, adminTokenFile string) *Client {
	return &Client{
		base:           strings.TrimRight(base, "/"),
		tokenFile:      tokenFile,
		adminTokenFile: adminTokenFile,
		http: &http.Client{
			// No proxy of the environment and no redirect shall see the token.
			Transport: &http.Transport{
				DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
				TLSHandshakeTimeout:    dialTimeout,
				MaxResponseHeaderBytes: 16 << 10,
				DisableKeepAlives:      true, // a request a minute; Synapse may send more than it announced
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// CheckToken tells whether the token can be read and used, without a request. Whether the server takes it is another question.
func (c *Client) CheckToken() error {
	if _, err := readToken(c.tokenFile); err != nil {
		return &Error{Class: ErrUnauthorized, Action: "speak to Synapse", Err: err}
	}
	return nil
}

// Reach tells whether a Synapse answers, by a request that takes no token. Client-Server API, GET /_matrix/client/versions.
func (c *Client) Reach(ctx context.Context) error {
	versions := call{action: "reach Synapse", method: http.MethodGet, limit: maxJSON, path: "/_matrix/client/versions"}
	body, _, err := c.do(ctx, versions)
	if failure, ok := errors.AsType[*Error](err); ok && failure.ErrCode == "M_UNRECOGNIZED" {
		return nil // a worker for media alone, which knows no other requests
	}
	if err != nil {
		return err
	}
	var answer struct{ Versions []string }
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.Versions) == 0 {
		return &Error{Class: ErrRefused, Action: versions.action, Status: http.StatusOK, Err: errors.New("the answer is not a homeserver's")}
	}
	return nil
}

// Identify tells whether the server takes the token. Client-Server API, GET /_matrix/client/v3/account/whoami.
func (c *Client) Identify(ctx context.Context) error {
	whoami := call{
		action: "speak to Synapse", method: http.MethodGet, limit: maxJSON, path: "/_matrix/client/v3/account/whoami", tokenFile: c.tokenFile,
	}
	_, _, err := c.do(ctx, whoami)
	return err
}

// Upload stores a PNG and returns its content URI, mxc://server/media-id. Client-Server API,
// POST /_matrix/media/v3/upload.
func (c *Client) Upload(ctx context.Context, png []byte) (string, error) {
	upload := call{
		action: "upload a picture", method: http.MethodPost, limit: maxJSON,
		path: "/_matrix/media/v3/upload?filename=luksmediad.png", body: png, tokenFile: c.tokenFile,
	}
	body, _, err := c.do(ctx, upload)
	if err != nil {
		return "", err
	}
	var answer struct {
		ContentURI string `json:"content_uri"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", &Error{Class: ErrRefused, Action: upload.action, Status: http.StatusOK, Err: err}
	}
	if _, _, err := splitURI(answer.ContentURI); err != nil {
		return "", &Error{Class: ErrRefused, Action: upload.action, Status: http.StatusOK, Err: err}
	}
	return answer.ContentURI, nil
}

// Thumbnail returns a thumbnail of local media, 32×32 pixels or what the server has instead.
// Client-Server API, GET /_matrix/client/v1/media/thumbnail, the authenticated form (v1.11).
func (c *Client) Thumbnail(ctx context.Context, uri string) ([]byte, error) {
	thumbnail := call{action: "get a thumbnail", method: http.MethodGet, limit: maxImage, tokenFile: c.tokenFile}
	server, id, err := splitURI(uri)
	if err != nil {
		return nil, &Error{Class: ErrRefused, Action: thumbnail.action, Err: err}
	}
	thumbnail.path = "/_matrix/client/v1/media/thumbnail/" + url.PathEscape(server) + "/" + url.PathEscape(id) + thumbnailQuery
	body, contentType, err := c.do(ctx, thumbnail)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, &Error{Class: ErrNotImage, Action: thumbnail.action, Status: http.StatusOK, Err: io.ErrUnexpectedEOF}
	}
	if err != nil {
		return nil, err
	}
	if mediaType, _, err := mime.ParseMediaType(contentType); err != nil || !strings.HasPrefix(mediaType, "image/") {
		return nil, &Error{
			Class: ErrNotImage, Action: thumbnail.action, Status: http.StatusOK, Err: fmt.Errorf("content type %q", contentType),
		}
	}
	return body, nil
}

// Delete removes local media, its files and what the database knows of it, by the one right that a server admin has for it. It is no error
// if they are gone. Synapse's Admin API, DELETE /_synapse/admin/v1/media/{server}/{id}.
func (c *Client) Delete(ctx context.Context, uri string) error {
	deletion := call{action: "delete a picture", method: http.MethodDelete, limit: maxJSON, tokenFile: c.adminTokenFile}
	if c.adminTokenFile == "" {
		return fmt.Errorf("cannot %s without an admin token: %w", deletion.action, errors.ErrUnsupported)
	}
	server, id, err := splitURI(uri)
	if err != nil {
		return &Error{Class: ErrRefused, Action: deletion.action, Err: err}
	}
	deletion.path = "/_synapse/admin/v1/media/" + url.PathEscape(server) + "/" + url.PathEscape(id)
	body, _, err := c.do(ctx, deletion)
	if failure, ok := errors.AsType[*Error](err); ok && failure.isNotTheirs() {
		return nil
	}
	if err != nil {
		return err
	}
	var answer struct {
		Total int `json:"total"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Total != 1 {
		// It does not delete what it cannot unlink, and says so only in its log (synapse/media/media_repository.py).
		return &Error{Class: ErrRefused, Action: deletion.action, Status: http.StatusOK, Err: fmt.Errorf("%d pictures are deleted", answer.Total)}
	}
	return nil
}

// isNotTheirs: the server has no such media, or has another name by now (400, synapse/rest/admin/media.py). With another code, or without,
// the answer is of a proxy, or of a worker that does not know the API.
func (e *Error) isNotTheirs() bool {
	return e.Status == http.StatusNotFound && e.ErrCode == "M_NOT_FOUND" || e.Status == http.StatusBadRequest && e.ErrCode == "M_UNKNOWN"
}

// splitURI splits a content URI, Client-Server API, "Matrix Content (mxc://) URIs".
func splitURI(uri string) (server, id string, err error) {
	rest, ok := strings.CutPrefix(uri, "mxc://")
	server, id, both := strings.Cut(rest, "/")
	if !ok || !both || server == "" || id == "" || strings.Contains(id, "/") {
		return "", "", fmt.Errorf("content URI %q is not mxc://server/media-id", uri)
	}
	return server, id, nil
}

// call is one request.
type call struct {
	action string // what it is for, in errors
	method string
	path   string // with the query
	body   []byte // a PNG, or nil
	limit  int64  // bytes of the answer

	tokenFile string // empty for a request without a token
}

// do makes a request and returns the body and type of an answer of status 200.
func (c *Client) do(ctx context.Context, call call) (body []byte, contentType string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience(ctx))
	defer cancel()
	request, err := c.request(ctx, call)
	if err != nil {
		return nil, "", err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, "", &Error{Class: notReached(err), Action: call.action, Err: withoutURL(err)}
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, "", refusal(call.action, response)
	}
	body, err = io.ReadAll(io.LimitReader(response.Body, call.limit+1))
	if err != nil {
		return nil, "", &Error{Class: ErrUnreachable, Action: call.action, Status: response.StatusCode, Err: err}
	}
	if int64(len(body)) > call.limit {
		return nil, "", &Error{
			Class: ErrRefused, Action: call.action, Status: response.StatusCode, Err: fmt.Errorf("answer of more than %d bytes", call.limit),
		}
	}
	return body, response.Header.Get("Content-Type"), nil
}

// patience ends before the caller's: a server that hangs is one that does not answer, not a probe that is late.
func patience(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(requestTimeout, time.Until(deadline)*3/4)
	}
	return requestTimeout
}

func (c *Client) request(ctx context.Context, call call) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, call.method, c.base+call.path, bytes.NewReader(call.body))
	if err != nil {
		return nil, &Error{Class: ErrUnreachable, Action: call.action, Err: withoutURL(err)}
	}
	if call.tokenFile != "" {
		token, err := readToken(call.tokenFile)
		if err != nil {
			return nil, &Error{Class: ErrUnauthorized, Action: call.action, Err: err}
		}
		request.Header.Set("Authorization", "Bearer "+token)
	}
	if call.body != nil {
		request.Header.Set("Content-Type", "image/png")
	}
	return request, nil
}

// notReached tells a Synapse that is not there from one that the unit keeps away by IPAddressDeny= (systemd.resource-control(5)): what is
// sent elsewhere is refused with EPERM then. Of a question for its name Go keeps the text alone (net.DNSError). A connection by TCP fails
// so with a firewall only: the kernel lets that of the unit time out (tcp_connect() in its net/ipv4/tcp_output.c).
func notReached(err error) error {
	name, asked := errors.AsType[*net.DNSError](err)
	if errors.Is(err, unix.EPERM) || asked && strings.HasSuffix(name.Err, unix.EPERM.Error()) {
		return ErrBlocked
	}
	return ErrUnreachable
}

// withoutURL drops method and URL, which the class and the action already say.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// refusal turns an answer other than 200 into an error. Its body is the server's standard error
// response, Client-Server API, "Standard error response", or a proxy's page, which is not quoted.
func refusal(action string, response *http.Response) error {
	var answer struct {
		ErrCode string `json:"errcode"`
	}
	// What is no JSON leaves the code empty, and the status says enough.
	_ = json.NewDecoder(io.LimitReader(response.Body, maxJSON)).Decode(&answer)
	class := ErrRefused
	switch response.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		class = ErrUnauthorized
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		class = ErrUnreachable // a reverse proxy in front of a Synapse that is down
	}
	return &Error{Class: class, Action: action, Status: response.StatusCode, ErrCode: errorCode(answer.ErrCode)}
}

// errorCode returns a code that is shaped like one and drops any other.
func errorCode(code string) string {
	const maxCode = 64
	odd := func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '.' }
	if len(code) > maxCode || strings.ContainsFunc(strings.ToUpper(code), odd) {
		return ""
	}
	return code
}
