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
	"cmp"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"
	"github.com/labstack/gommon/log"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/openapi"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/strictjson"
)

// Defaults of Config.
const (
	DefaultMaxBodyBytes   = api.DefaultMaxBodyBytes
	DefaultRequestTimeout = 30 * time.Second
	DefaultMaxBatchItems  = 1000
	DefaultMaxBatchBytes  = 8 << 20
	DefaultMaxJSONDepth   = 64
	DefaultMaxJSONKeys    = 10_000
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
	// Pool is for what must be looked up to answer a submission other than by
	// storing it.
	Pool *pgxpool.Pool
	// Livez, Readyz and Metrics are mounted at /livez, /readyz and /metrics,
	// which need no key.
	Livez, Readyz, Metrics http.Handler
	// JobView is mounted at /river, for admins' keys for all tenants: a bearer's, or the
	// password of Basic authentication. nil: there is none. See NewJobView.
	JobView http.Handler

	// BootstrapKey is an API key that may do everything. While it is empty only
	// the keys in the database are accepted.
	BootstrapKey string
	// KeyUse is told which keys are used; its Run is the caller's to start. nil:
	// nobody is told.
	KeyUse *KeyUse
	// TrustedProxies are the networks of the proxies in front, whose
	// X-Forwarded-For is believed. Empty: there are none, and clients are who
	// they connect as.
	TrustedProxies []netip.Prefix
	// MaxBodyBytes is the largest request body; 0 means DefaultMaxBodyBytes.
	MaxBodyBytes int64
	// MaxBatchItems is how many events a batch may have, and MaxBatchBytes the
	// largest body of a batch, in which each event still is at most MaxBodyBytes; 0
	// means DefaultMaxBatchItems and DefaultMaxBatchBytes.
	MaxBatchItems int
	MaxBatchBytes int64
	// MaxJSONDepth is how deep an event's JSON may be nested, the body it comes in
	// included, and MaxJSONKeys how many members its objects may have together; 0
	// means DefaultMaxJSONDepth and DefaultMaxJSONKeys.
	MaxJSONDepth, MaxJSONKeys int
	// Limits decide whether an event may be accepted now; its Run is the caller's
	// to start. nil: there are none.
	Limits *Limits
	// StrictEventTypes refuses events of types that are not declared.
	StrictEventTypes bool
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
	pool           *pgxpool.Pool
	clock          *postgres.Clock
	key            *bootstrapKey
	keyUse         *KeyUse
	limits         *Limits // may be nil
	trustedProxies []netip.Prefix
	logger         *slog.Logger
	metrics        *metrics
	maxBodyBytes   int64
	maxBatchItems  int
	maxBatchBytes  int64
	requestTimeout time.Duration
	bounds         strictjson.Bounds // of an event's JSON

	strictEventTypes bool

	bodies  *bodyBudget
	replays *semaphore.Weighted // bounds look-ups of earlier submissions
}

// New makes a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.MaxBodyBytes < 0 || cfg.MaxBatchItems < 0 || cfg.MaxBatchBytes < 0 || cfg.RequestTimeout < 0 || cfg.MaxJSONDepth < 0 || cfg.MaxJSONKeys < 0 {
		return nil, errors.New("limits of requests must not be negative")
	}
	s := &Server{
		echo:           echo.New(),
		catalog:        cfg.Catalog,
		intake:         cfg.Intake,
		pool:           cfg.Pool,
		clock:          cfg.Clock,
		key:            newBootstrapKey(cfg.BootstrapKey),
		keyUse:         cfg.KeyUse,
		limits:         cfg.Limits,
		trustedProxies: cfg.TrustedProxies,
		logger:         cfg.Logger,
		maxBodyBytes:   cfg.MaxBodyBytes,
		maxBatchItems:  cmp.Or(cfg.MaxBatchItems, DefaultMaxBatchItems),
		maxBatchBytes:  cmp.Or(cfg.MaxBatchBytes, DefaultMaxBatchBytes),
		requestTimeout: cfg.RequestTimeout,
		bounds: strictjson.Bounds{
			MaxDepth: cmp.Or(cfg.MaxJSONDepth, DefaultMaxJSONDepth),
			MaxKeys:  cmp.Or(cfg.MaxJSONKeys, DefaultMaxJSONKeys),
		},
		strictEventTypes: cfg.StrictEventTypes,
		replays:          semaphore.NewWeighted(maxReplayLookups),
	}
	if s.maxBodyBytes == 0 {
		s.maxBodyBytes = DefaultMaxBodyBytes
	}
	if s.requestTimeout == 0 {
		s.requestTimeout = DefaultRequestTimeout
	}
	s.bodies = newBodyBudget(max(s.maxBodyBytes, s.maxBatchBytes))
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
	e.Use(s.identify, s.observe, s.recover, s.authenticate, s.limitTime, s.limitMemory)

	probes := []string{http.MethodGet, http.MethodHead} // balancers ask with either
	e.Match(probes, "/livez", echo.WrapHandler(cfg.Livez))
	e.Match(probes, "/readyz", echo.WrapHandler(cfg.Readyz))
	e.Match(probes, "/metrics", echo.WrapHandler(cfg.Metrics))
	e.Match(probes, "/openapi.json", echo.WrapHandler(openapi.JSON()))
	e.Match(probes, "/docs", echo.WrapHandler(openapi.Docs()))
	e.POST("/v1/events", s.submit, s.signed(s.maxBodyBytes))
	e.POST("/v1/events/batch", s.submitBatch, newBatchGate(s.maxBatchBytes, s.bodies.free.Load()/2).middleware, s.signed(s.maxBatchBytes))
	e.POST("/v1/webhooks/:id/events", s.submitRaw, s.signed(s.maxBodyBytes))
	cfg.API.Register(e)
	if cfg.JobView != nil {
		e.Any(jobViewPath, jobView(cfg.JobView))
		e.Any(jobViewPath+"/*", jobView(cfg.JobView))
	}
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.echo.ServeHTTP(w, r) }
