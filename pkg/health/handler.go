package health

import (
	"encoding/json"
	"mime"
	"net/http"
	"slices"
	"strings"
)

// Handler answers GET and HEAD of one endpoint with the Board's report: text as of Kubernetes,
// with ?verbose and ?exclude=, or JSON if the client's Accept header names it. It does no I/O
// but the answer.
func (b *Board) Handler(endpoint Endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		query := req.URL.Query()
		r := b.Report(endpoint, query["exclude"]...)
		if acceptsJSON(req.Header.Values("Accept")) {
			r.serveJSON(w)
			return
		}
		r.serveText(w, query.Has("verbose"))
	})
}

// acceptsJSON says whether Accept header fields name JSON outright, which curl's */* does not.
func acceptsJSON(accept []string) bool {
	for field := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		mediaType, parameters, err := mime.ParseMediaType(field)
		if err == nil && parameters["q"] != "0" && slices.Contains([]string{MediaType, "application/json"}, mediaType) {
			return true
		}
	}
	return false
}

// The answers are written to a client that may have gone: there is nobody to report an error to.

func (r Report) serveText(w http.ResponseWriter, verbose bool) {
	r.writeHeader(w, "text/plain; charset=utf-8")
	_ = r.WriteText(w, verbose)
}

func (r Report) serveJSON(w http.ResponseWriter) {
	r.writeHeader(w, MediaType)
	_ = json.NewEncoder(w).Encode(r.JSON())
}

func (r Report) writeHeader(w http.ResponseWriter, contentType string) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(r.StatusCode())
}
