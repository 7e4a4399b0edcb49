// Package ingest is the server of the REST API: the routes that submit events,
// and what surrounds every route. It guarantees that
//
//   - a submit is answered with 202 only after its event and deliveries are
//     committed (package intake), and with an error otherwise;
//   - every error is an RFC 9457 problem document, every answer carries
//     X-Request-Id, and nothing internal is shown to a caller;
//   - every request has a deadline, and every body a limit.
//
// What net/http refuses before there is a request (a malformed request line,
// headers over the limit) is answered by net/http, in plain text.
package ingest

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/labstack/gommon/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/postgres"
)

// Defaults of Config.
const (
	DefaultMaxBodyBytes   = api.DefaultMaxBodyBytes
	DefaultRequestTimeout = 30 * time.Second
)

const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
	// answerTime is how long a client may take to read an answer, beyond the
	// request's own deadline.
	answerTime = 10 * time.Second
)

// Config is what a Server needs. All fields are required but where a default is
// named.
type Config struct {
	Catalog *catalog.Catalog
	Intake  *intake.Intake
	API     *api.API
	Clock   *postgres.Clock // for request ids
	// Livez, Readyz and Metrics are mounted at /livez, /readyz and /metrics,
	// which need no key.
	Livez, Readyz, Metrics http.Handler

	// BootstrapKey is the API key that may do everything. While it is empty
	// every call is refused.
	BootstrapKey string
	// MaxBodyBytes is the largest request body; 0 means DefaultMaxBodyBytes.
	MaxBodyBytes int64
	// RequestTimeout is how long a request may take, the reading of its body
	// included; 0 means DefaultRequestTimeout.
	RequestTimeout time.Duration

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Server is the REST API as an http.Handler. It is safe for concurrent use.
type Server struct {
	echo           *echo.Echo
	catalog        *catalog.Catalog
	intake         *intake.Intake
	clock          *postgres.Clock
	key            *bootstrapKey
	logger         *slog.Logger
	metrics        *metrics
	maxBodyBytes   int64
	requestTimeout time.Duration
}

// New makes a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.MaxBodyBytes < 0 || cfg.RequestTimeout < 0 {
		return nil, errors.New("limits of requests must not be negative")
	}
	s := &Server{
		echo:           echo.New(),
		catalog:        cfg.Catalog,
		intake:         cfg.Intake,
		clock:          cfg.Clock,
		key:            newBootstrapKey(cfg.BootstrapKey),
		logger:         cfg.Logger,
		maxBodyBytes:   cfg.MaxBodyBytes,
		requestTimeout: cfg.RequestTimeout,
	}
	if s.maxBodyBytes == 0 {
		s.maxBodyBytes = DefaultMaxBodyBytes
	}
	if s.requestTimeout == 0 {
		s.requestTimeout = DefaultRequestTimeout
	}
	var err error
	if s.metrics, err = newMetrics(cfg.Registerer); err != nil {
		return nil, err
	}

	e := s.echo
	e.HideBanner, e.HidePort = true, true
	e.Logger.SetLevel(log.OFF) // all logging is the Server's own
	e.HTTPErrorHandler = s.renderError
	// The order is from the outside in. observe renders errors itself, so that
	// it sees the status that the client gets.
	e.Use(s.identify, s.observe, s.recover, s.authenticate, s.limitTime)

	e.GET("/livez", echo.WrapHandler(cfg.Livez))
	e.GET("/readyz", echo.WrapHandler(cfg.Readyz))
	e.GET("/metrics", echo.WrapHandler(cfg.Metrics))
	e.POST("/v1/events", s.submit)
	e.POST("/v1/webhooks/:id/events", s.submitRaw)
	cfg.API.Register(e)
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.echo.ServeHTTP(w, r) }

// HTTPServer is an http.Server for s, with timeouts and limits that a slow or
// hostile client cannot get around.
func (s *Server) HTTPServer() *http.Server {
	return &http.Server{
		Handler:           s,
		ReadHeaderTimeout: min(readHeaderTimeout, s.requestTimeout),
		ReadTimeout:       s.requestTimeout,
		WriteTimeout:      s.requestTimeout + answerTime,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}
