package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"

	"luksmediad/pkg/health"
)

// A Server offers one backend at two places.
type Server struct {
	// ReadOnly is for loopback TCP, where every local user and, through a browser, any web page may knock.
	ReadOnly http.Handler
	// Control is for the Unix socket, whose permissions say who may.
	Control http.Handler
	// authenticated is for TCP where everybody is known who gets this far: no page of a rebound name has their password.
	authenticated http.Handler

	logger *slog.Logger
}

// New returns the server of a backend. What acts is logged with the process that asked for it.
func New(backend Backend, logger *slog.Logger) *Server {
	routes := newRouter(backend, logger)
	return &Server{
		ReadOnly: chain(routes, noStore, allowHosts, refuseOrigins, refuseActions, readBody(bodyDeadline)),
		Control:  chain(routes, noStore, refuseOrigins, readBody(bodyDeadline)),

		authenticated: chain(routes, noStore, refuseOrigins, refuseActions, readBody(bodyDeadline)),
		logger:        logger,
	}
}

func newRouter(backend Backend, logger *slog.Logger) http.Handler {
	router := chi.NewRouter()
	router.Use(headAsGet)
	router.NotFound(notFound)
	router.MethodNotAllowed(methodNotAllowed)
	strict := NewStrictHandlerWithOptions(operations{backend, newPage(backend.Status, failWith(backend.Explain))}, []StrictMiddlewareFunc{withRequest, logActions(logger)}, StrictHTTPServerOptions{
		RequestErrorHandlerFunc:  badRequest,
		ResponseErrorHandlerFunc: failWith(backend.Explain),
	})
	return HandlerWithOptions(strict, ChiServerOptions{BaseRouter: router, ErrorHandlerFunc: badRequest})
}

// headAsGet has whatever answers GET answer HEAD. chi's own middleware of that kind comes with net/http/pprof, which has the runtime keep a
// profile of the memory.
func headAsGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			chi.RouteContext(r.Context()).RouteMethod = http.MethodGet
		}
		next.ServeHTTP(w, r)
	})
}

func notFound(w http.ResponseWriter, r *http.Request) {
	refuse(w, http.StatusNotFound, classNotFound, fmt.Sprintf("cannot %s %s: no such route", r.Method, r.URL.Path))
}

func methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		asked := method
		if method == http.MethodHead {
			asked = http.MethodGet // whatever answers GET answers HEAD
		}
		if chi.RouteContext(r.Context()).Routes.Match(chi.NewRouteContext(), asked, r.URL.Path) {
			allowed = append(allowed, method)
		}
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	refuse(w, http.StatusMethodNotAllowed, classMethodNotAllowed, fmt.Sprintf("cannot %s %s: no such method there", r.Method, r.URL.Path))
}

func badRequest(w http.ResponseWriter, _ *http.Request, err error) {
	refuse(w, http.StatusBadRequest, classBadRequest, err.Error())
}

// A refusal is an error that operations find in a request, before the backend sees it.
type refusal struct {
	status int
	class  Class
	detail string
}

func (e *refusal) Error() string { return e.detail }

func failWith(explain func(error) Explanation) func(http.ResponseWriter, *http.Request, error) {
	return func(w http.ResponseWriter, _ *http.Request, err error) {
		if refused, ok := errors.AsType[*refusal](err); ok {
			refuse(w, refused.status, refused.class, refused.detail)
			return
		}
		fail(w, explain(err), err)
	}
}

type requestKey struct{}

// withRequest lets an operation hand its request to an [http.Handler].
func withRequest(next StrictHandlerFunc, _ string) StrictHandlerFunc {
	return func(ctx context.Context, w http.ResponseWriter, r *http.Request, request any) (any, error) {
		return next(context.WithValue(ctx, requestKey{}, r), w, r, request)
	}
}

func logActions(logger *slog.Logger) StrictMiddlewareFunc {
	return func(next StrictHandlerFunc, operation string) StrictHandlerFunc {
		return func(ctx context.Context, w http.ResponseWriter, r *http.Request, request any) (any, error) {
			if r.Method != http.MethodPost {
				return next(ctx, w, r, request)
			}
			began := time.Now()
			response, err := next(ctx, w, r, request)
			logger.LogAttrs(ctx, slog.LevelInfo, "control request", requestAttrs(ctx, operation, time.Since(began), err)...)
			return response, err
		}
	}
}

func requestAttrs(ctx context.Context, operation string, took time.Duration, err error) []slog.Attr {
	attrs := []slog.Attr{slog.String("operation", operation), slog.Duration("took", took)}
	if peer, ok := peerFrom(ctx); ok {
		attrs = append(attrs, slog.Int("peer_pid", int(peer.PID)), slog.Int("peer_uid", int(peer.UID)), slog.Int("peer_gid", int(peer.GID)))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	return attrs
}

// operations fills the interface that was generated from the description.
type operations struct {
	backend Backend
	page    page
}

var _ StrictServerInterface = operations{}

// served lets an http.Handler answer an operation.
type served struct {
	handler http.Handler
	request *http.Request
}

func serveBy(ctx context.Context, handler http.Handler) served {
	return served{handler, ctx.Value(requestKey{}).(*http.Request)}
}

func (s served) visit(w http.ResponseWriter) error {
	s.handler.ServeHTTP(w, s.request)
	return nil
}

func (s served) VisitGetPageResponse(w http.ResponseWriter) error    { return s.visit(w) }
func (s served) VisitGetLivezResponse(w http.ResponseWriter) error   { return s.visit(w) }
func (s served) VisitGetReadyzResponse(w http.ResponseWriter) error  { return s.visit(w) }
func (s served) VisitGetHealthzResponse(w http.ResponseWriter) error { return s.visit(w) }
func (s served) VisitGetMetricsResponse(w http.ResponseWriter) error { return s.visit(w) }

func (o operations) GetPage(ctx context.Context, _ GetPageRequestObject) (GetPageResponseObject, error) {
	return serveBy(ctx, o.page), nil
}

func (o operations) GetLivez(ctx context.Context, r GetLivezRequestObject) (GetLivezResponseObject, error) {
	return serveBy(ctx, o.backend.Health.Handler(health.Livez)), checkHealthQuery(r.Params.Verbose, r.Params.Exclude)
}

func (o operations) GetReadyz(ctx context.Context, r GetReadyzRequestObject) (GetReadyzResponseObject, error) {
	return serveBy(ctx, o.backend.Health.Handler(health.Readyz)), checkHealthQuery(r.Params.Verbose, r.Params.Exclude)
}

func (o operations) GetHealthz(ctx context.Context, r GetHealthzRequestObject) (GetHealthzResponseObject, error) {
	return serveBy(ctx, o.backend.Health.Handler(health.Healthz)), checkHealthQuery(r.Params.Verbose, r.Params.Exclude)
}

func (o operations) GetMetrics(ctx context.Context, _ GetMetricsRequestObject) (GetMetricsResponseObject, error) {
	return serveBy(ctx, o.backend.Metrics), nil
}

func (o operations) GetStatus(ctx context.Context, _ GetStatusRequestObject) (GetStatusResponseObject, error) {
	status, err := o.backend.Status.Status(ctx)
	if err != nil {
		return nil, err
	}
	return GetStatus200JSONResponse(withoutNulls(status)), nil
}

// withoutNulls makes a list that nobody filled an empty one: encoding/json writes a nil slice as null, which is no array.
func withoutNulls(status Status) Status {
	status.Sources = append([]Source{}, status.Sources...)
	status.Stores = append([]Store{}, status.Stores...)
	status.Conditions = append([]Condition{}, status.Conditions...)
	status.Services = append([]string{}, status.Services...)
	return status
}

func (o operations) GetOperations(ctx context.Context, _ GetOperationsRequestObject) (GetOperationsResponseObject, error) {
	found, err := o.backend.Operate.Operations(ctx)
	return GetOperations200JSONResponse{Operations: append([]Operation{}, found...)}, err
}

func (o operations) Unlock(ctx context.Context, _ UnlockRequestObject) (UnlockResponseObject, error) {
	if err := refuseAnyBody(ctx); err != nil {
		return nil, err
	}
	outcome, err := o.backend.Control.Unlock(ctx)
	return Unlock200JSONResponse(outcome), err
}

func (o operations) Lock(ctx context.Context, r LockRequestObject) (LockResponseObject, error) {
	outcome, err := o.backend.Control.Lock(ctx, *r.Body)
	return Lock200JSONResponse(outcome), err
}

func (o operations) RunProbe(ctx context.Context, r RunProbeRequestObject) (RunProbeResponseObject, error) {
	if !r.Name.Valid() {
		return nil, &refusal{http.StatusNotFound, classNotFound, fmt.Sprintf("cannot run probe %q: no such probe", r.Name)}
	}
	if err := refuseAnyBody(ctx); err != nil {
		return nil, err
	}
	result, err := o.backend.Control.RunProbe(ctx, r.Name)
	return RunProbe200JSONResponse(result), err
}

func (o operations) Grow(ctx context.Context, r GrowRequestObject) (GrowResponseObject, error) {
	grown, err := o.backend.Operate.Grow(ctx, *r.Body)
	return Grow200JSONResponse(grown), err
}

func (o operations) Migrate(ctx context.Context, r MigrateRequestObject) (MigrateResponseObject, error) {
	migration, err := o.backend.Operate.Migrate(ctx, *r.Body)
	if migration.Begun {
		return Migrate202JSONResponse(migration), err
	}
	return Migrate200JSONResponse(migration), err
}

// refuseAnyBody keeps a passphrase out that someone sends along in good faith.
func refuseAnyBody(ctx context.Context) error {
	if ctx.Value(requestKey{}).(*http.Request).ContentLength == 0 {
		return nil
	}
	return &refusal{http.StatusBadRequest, classBadRequest, "cannot read the body: this request has none"}
}

const maxExcluded = 32

var conditionCode = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`) })

func checkHealthQuery(verbose Flag, exclude []string) error {
	if !verbose.Valid() {
		return &refusal{http.StatusBadRequest, classBadRequest, fmt.Sprintf("cannot read verbose=%q: it has no value, or 1, or true", verbose)}
	}
	if len(exclude) > maxExcluded {
		return &refusal{http.StatusBadRequest, classBadRequest, fmt.Sprintf("cannot exclude %d conditions: at most %d", len(exclude), maxExcluded)}
	}
	for _, code := range exclude {
		if !conditionCode().MatchString(code) {
			return &refusal{http.StatusBadRequest, classBadRequest, fmt.Sprintf("cannot exclude %q: not a condition's code", code)}
		}
	}
	return nil
}
