package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	maxBodyBytes = 64 << 10
	bodyDeadline = 10 * time.Second
)

type middleware = func(http.Handler) http.Handler

// chain puts the middlewares around h; the first one sees the request first.
func chain(h http.Handler, around ...middleware) http.Handler {
	for i := len(around) - 1; i >= 0; i-- {
		h = around[i](h)
	}
	return h
}

func noStore(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

// allowHosts stops DNS rebinding: a page of rebound.example whose name now resolves to 127.0.0.1 still sends its own name as Host.
// net/http has already replaced Host by the host of an absolute request target, as RFC 9112 section 3.2.2 demands.
func allowHosts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLoopbackName(r.Host) {
			refuse(w, http.StatusMisdirectedRequest, classHostRefused,
				fmt.Sprintf("cannot serve host %q: only 127.0.0.1, [::1] and localhost", r.Host))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isLoopbackName compares names, not addresses: 127.1 or [::ffff:127.0.0.1] may well lead here, but nobody has to write them.
func isLoopbackName(host string) bool {
	name, port := host, ""
	if colon := strings.LastIndexByte(host, ':'); colon >= 0 && !strings.HasSuffix(host, "]") {
		name, port = host[:colon], host[colon+1:]
	}
	if strings.Trim(port, "0123456789") != "" {
		return false
	}
	return name == "127.0.0.1" || name == "[::1]" || strings.EqualFold(name, "localhost")
}

// refuseOrigins keeps every web page out: browsers send Origin with all that could act, and no other client has a reason to.
func refuseOrigins(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if origins := r.Header.Values("Origin"); len(origins) > 0 {
			refuse(w, http.StatusForbidden, classOriginRefused, fmt.Sprintf("cannot serve a page of origin %q: not for web pages", origins[0]))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func refuseActions(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			refuse(w, http.StatusForbidden, classReadOnly,
				fmt.Sprintf("cannot %s %s over TCP: only on the control socket", r.Method, r.URL.Path))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// readBody takes the body in before anything acts on it, so that its size, time and form are bounded here for every route.
func readBody(deadline time.Duration) middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := boundedBody(w, r, deadline)
			if err != nil {
				refuseBody(w, err)
				return
			}
			if len(body) > 0 && !isJSON(r.Header.Get("Content-Type")) {
				refuse(w, http.StatusUnsupportedMediaType, classBodyNotJSON, "cannot read the body: its Content-Type is not application/json")
				return
			}
			if len(body) > 0 && !json.Valid(body) {
				refuse(w, http.StatusBadRequest, classBadRequest, "cannot read the body: it is not one JSON value")
				return
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			next.ServeHTTP(w, r)
		})
	}
}

func boundedBody(w http.ResponseWriter, r *http.Request, deadline time.Duration) ([]byte, error) {
	if r.Body == http.NoBody {
		return nil, nil
	}
	conn := http.NewResponseController(w)
	if err := conn.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		return nil, err
	}
	// net/http lifts the deadline when the body has ended (connReader.startBackgroundRead), so an action may take longer.
	return io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
}

func refuseBody(w http.ResponseWriter, err error) {
	tooLarge, isTooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case isTooLarge:
		refuse(w, http.StatusRequestEntityTooLarge, classBodyTooLarge,
			fmt.Sprintf("cannot read the body: it is larger than %d bytes", tooLarge.Limit))
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close") // the rest of the body may still come
		refuse(w, http.StatusRequestTimeout, classBodyLate, "cannot read the body: it did not arrive in time")
	default:
		refuse(w, http.StatusBadRequest, classBadRequest, fmt.Sprintf("cannot read the body: %v", err))
	}
}

func isJSON(contentType string) bool {
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && mediaType == "application/json"
}
