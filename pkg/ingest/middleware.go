package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// maxRequestIDLength is the longest X-Request-Id that is taken over.
const maxRequestIDLength = 128

// scopeKey is where a request's scope is kept in its echo.Context.
const scopeKey = "fairhook.scope"

// scope is what log lines about one request say about it, besides what its path
// says. Handlers fill in what they learn.
type scope struct {
	requestID string
	keyID     webhook.ID
	eventID   webhook.ID
	webhookID webhook.ID
}

func scopeOf(c echo.Context) *scope {
	s, ok := c.Get(scopeKey).(*scope)
	if !ok {
		return &scope{} // a panic before identify; there is nothing to say
	}
	return s
}

// attrs are the log attributes of a request: the ids that are known of it.
func (s *Server) attrs(c echo.Context) []slog.Attr {
	known := scopeOf(c)
	attrs := []slog.Attr{
		slog.String("request_id", known.requestID),
		slog.String("method", c.Request().Method),
		slog.String("route", route(c)),
	}
	eventID, webhookID := known.eventID, known.webhookID
	if id, err := webhook.ParseID(c.Param("id")); err == nil {
		switch {
		case strings.HasPrefix(c.Path(), "/v1/events/"):
			eventID = id
		case strings.HasPrefix(c.Path(), "/v1/webhooks/"):
			webhookID = id
		}
	}
	if !known.keyID.IsZero() {
		attrs = append(attrs, slog.String("key_id", known.keyID.String()))
	}
	if !eventID.IsZero() {
		attrs = append(attrs, slog.String("event_id", eventID.String()))
	}
	if !webhookID.IsZero() {
		attrs = append(attrs, slog.String("webhook_id", webhookID.String()))
	}
	return attrs
}

// identify gives the request its id: the caller's own, if it sent a sane one, or
// a new UUIDv7.
func (s *Server) identify(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		id := c.Request().Header.Get(echo.HeaderXRequestID)
		if !isVisibleASCII(id, maxRequestIDLength) {
			id = webhook.NewID(s.clock.Now()).String()
		}
		c.Set(scopeKey, &scope{requestID: id})
		c.Response().Header().Set(echo.HeaderXRequestID, id)
		return next(c)
	}
}

// isVisibleASCII reports whether text has between one and limit characters, all
// of them visible ASCII.
func isVisibleASCII(text string, limit int) bool {
	if text == "" || len(text) > limit {
		return false
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// observe renders the request's error, if any, then counts and logs the request.
// One line per request is too much for the log at info: errors are there.
func (s *Server) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		began := time.Now()
		s.metrics.inFlight.Inc()
		defer s.metrics.inFlight.Dec()
		if err := next(c); err != nil {
			s.renderError(err, c)
		}
		took := time.Since(began)
		status := c.Response().Status
		s.metrics.observe(c.Request().Method, route(c), status, took)

		ctx := c.Request().Context()
		if s.logger.Enabled(ctx, slog.LevelDebug) {
			attrs := append(s.attrs(c),
				slog.Int("status", status),
				slog.Duration("took", took),
				slog.Int64("bytes_in", c.Request().ContentLength),
				slog.Int64("bytes_out", c.Response().Size))
			s.logger.LogAttrs(ctx, slog.LevelDebug, "request", attrs...)
		}
		return nil
	}
}

// route is the pattern that the request's path matched: one of a closed set,
// unlike the path itself.
func route(c echo.Context) string {
	if path := c.Path(); path != "" {
		return path
	}
	return "none"
}

// panicError is a handler's panic on its way to the one place that logs errors.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// recover turns a panic into an internal error.
func (s *Server) recover(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			value := recover()
			switch {
			case value == nil:
			case value == http.ErrAbortHandler: // net/http's own way to cut a connection
				panic(value)
			default:
				err = &panicError{value, debug.Stack()}
			}
		}()
		return next(c)
	}
}

// limitTime gives the request its deadline.
func (s *Server) limitTime(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		ctx, cancel := context.WithTimeout(r.Context(), s.requestTimeout)
		defer cancel()
		c.SetRequest(r.WithContext(ctx))
		return next(c)
	}
}
