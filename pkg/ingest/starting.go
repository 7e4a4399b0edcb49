package ingest

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// startingRetryAfter is how soon a client may ask again while ingest starts.
const startingRetryAfter = time.Second

// Front is what listens for the whole life of a process: it answers probes and
// metrics from the first moment, and everything else with 503 and Retry-After
// until the Server is there, which needs the database for its start. It is safe
// for concurrent use.
type Front struct {
	probes  *http.ServeMux
	server  atomic.Pointer[Server]
	timeout time.Duration
	logger  *slog.Logger
}

// NewFront makes a Front without a Server. requestTimeout is
// Config.RequestTimeout.
func NewFront(livez, readyz, metrics http.Handler, requestTimeout time.Duration, logger *slog.Logger) *Front {
	f := &Front{probes: http.NewServeMux(), timeout: requestTimeout, logger: logger}
	for path, handler := range map[string]http.Handler{"/livez": livez, "/readyz": readyz, "/metrics": metrics} {
		f.probes.Handle("GET "+path, handler) // HEAD as well
	}
	f.probes.HandleFunc("/", refuseStarting)
	return f
}

// Open hands every further request to s.
func (f *Front) Open(s *Server) { f.server.Store(s) }

// HTTPServer is an http.Server for f, with timeouts and limits that a slow or
// hostile client cannot get around.
func (f *Front) HTTPServer() *http.Server {
	return &http.Server{
		Handler:           f,
		ReadHeaderTimeout: min(readHeaderTimeout, f.timeout),
		ReadTimeout:       f.timeout,
		WriteTimeout:      f.timeout + answerTime,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(f.logger.Handler(), slog.LevelDebug),
	}
}

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s := f.server.Load(); s != nil {
		s.ServeHTTP(w, r)
		return
	}
	id := r.Header.Get(echo.HeaderXRequestID)
	if !isVisibleASCII(id, maxRequestIDLength) {
		id = webhook.NewID(time.Now()).String() // the database's clock is not known yet, and nothing is stored under it
	}
	w.Header().Set(echo.HeaderXRequestID, id)
	f.probes.ServeHTTP(w, r)
}

func refuseStarting(w http.ResponseWriter, _ *http.Request) {
	p := kindUnavailable.problem("The service is starting: it has not reached its database yet.")
	header := w.Header()
	p.RequestID = header.Get(echo.HeaderXRequestID)
	header.Set(echo.HeaderContentType, "application/problem+json")
	header.Set(echo.HeaderRetryAfter, retryAfter(startingRetryAfter))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a client that left needs no answer
}
