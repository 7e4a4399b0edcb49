package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// problemBase is what every problem's type begins with; the rest is its code.
// The whole is a name, stable and for comparing, and need not be an address.
const problemBase = "https://fairhook.dev/problems/"

// statusClientClosed is what is counted for a client that left before its
// answer; nobody receives it.
const statusClientClosed = 499

// problem is an RFC 9457 problem document.
type problem struct {
	Type      string         `json:"type"`
	Title     string         `json:"title"`
	Status    int            `json:"status"`
	Detail    string         `json:"detail,omitempty"`
	RequestID string         `json:"request_id"`
	Errors    []problemError `json:"errors,omitempty"`

	retryAfter time.Duration
}

// problemError is one thing that is wrong, and where: in the body (a JSON
// Pointer, empty for the body as a whole) or in a parameter.
type problemError struct {
	Pointer   *string `json:"pointer,omitempty"`
	Parameter string  `json:"parameter,omitempty"`
	Detail    string  `json:"detail"`
}

// kind is what a problem's code stands for.
type kind struct {
	code   string
	title  string
	status int
}

// kinds are the problems that come from a *webhook.Error.
var kinds = map[webhook.Code]kind{
	webhook.CodeMalformed:    {string(webhook.CodeMalformed), "The request cannot be understood", http.StatusBadRequest},
	webhook.CodeInvalid:      {string(webhook.CodeInvalid), "The request breaks rules", http.StatusUnprocessableEntity},
	webhook.CodeUnauthorized: {string(webhook.CodeUnauthorized), "A valid API key is needed", http.StatusUnauthorized},
	webhook.CodeForbidden:    {string(webhook.CodeForbidden), "The API key does not allow this", http.StatusForbidden},
	webhook.CodeNotFound:     {string(webhook.CodeNotFound), "There is no such thing", http.StatusNotFound},
	webhook.CodeConflict:     {string(webhook.CodeConflict), "The request conflicts with another", http.StatusConflict},
	webhook.CodeTooLarge:     {string(webhook.CodeTooLarge), "The request is too large", http.StatusRequestEntityTooLarge},
	webhook.CodeRateLimited:  {string(webhook.CodeRateLimited), "Too many requests", http.StatusTooManyRequests},
	webhook.CodeBacklogFull:  {string(webhook.CodeBacklogFull), "Too many deliveries are waiting", http.StatusTooManyRequests},
	webhook.CodeUnavailable:  {string(webhook.CodeUnavailable), "Not now", http.StatusServiceUnavailable},
}

var (
	kindMethod      = kind{"method-not-allowed", "The method is not allowed here", http.StatusMethodNotAllowed}
	kindTimeout     = kind{"request-timeout", "The request took too long to arrive", http.StatusRequestTimeout}
	kindMediaType   = kind{"unsupported-media-type", "The body's encoding is not supported", http.StatusUnsupportedMediaType}
	kindClientGone  = kind{"client-closed-request", "The client has left", statusClientClosed}
	kindInternal    = kind{"internal-error", "Something went wrong on our side", http.StatusInternalServerError}
	kindUnavailable = kinds[webhook.CodeUnavailable]
)

func (k kind) problem(detail string) *problem {
	return &problem{Type: problemBase + k.code, Title: k.title, Status: k.status, Detail: detail}
}

// problemOf is the one mapping from errors to answers. internal reports an error
// that says nothing a caller may see, and everything an operator needs.
func problemOf(err error) (p *problem, internal bool) {
	var (
		own  *webhook.Error
		http *echo.HTTPError
	)
	switch {
	case errors.As(err, &own):
		k, known := kinds[own.Code]
		if !known {
			return kindInternal.problem(""), true
		}
		p := k.problem(own.Message)
		p.retryAfter = own.RetryAfter
		for _, f := range own.Fields {
			one := problemError{Parameter: f.Parameter, Detail: f.Detail}
			if f.Parameter == "" {
				one.Pointer = &f.Pointer
			}
			p.Errors = append(p.Errors, one)
		}
		return p, false
	case errors.As(err, &http):
		return httpProblem(http)
	case errors.Is(err, context.Canceled):
		return kindClientGone.problem("The client left before the answer."), false
	case postgres.Unavailable(err):
		return kindUnavailable.problem("The database cannot answer now. Try again."), true
	default:
		return kindInternal.problem("The error has been logged with the request id."), true
	}
}

// httpProblem is for errors of Echo's own and of api.ReadBody.
func httpProblem(err *echo.HTTPError) (p *problem, internal bool) {
	detail, _ := err.Message.(string)
	switch err.Code {
	case http.StatusNotFound:
		return kinds[webhook.CodeNotFound].problem("There is no such route."), false
	case http.StatusMethodNotAllowed:
		return kindMethod.problem("The methods that are allowed here are in the Allow header."), false
	case http.StatusRequestTimeout:
		return kindTimeout.problem(detail), false
	case http.StatusUnsupportedMediaType:
		return kindMediaType.problem(detail), false
	}
	return kindInternal.problem(""), true
}

// renderError answers with an error's problem document, and logs what is
// internal. It is Echo's HTTPErrorHandler.
func (s *Server) renderError(err error, c echo.Context) {
	p, internal := problemOf(err)
	p.RequestID = scopeOf(c).requestID
	if internal {
		attrs := append(s.attrs(c), slog.Int("status", p.Status), slog.Any("error", err))
		var panicked *panicError
		if errors.As(err, &panicked) {
			attrs = append(attrs, slog.String("stack", string(panicked.stack)))
		}
		s.logger.LogAttrs(c.Request().Context(), slog.LevelError, "request failed", attrs...)
	}
	if c.Response().Committed {
		return // the answer had begun: it cannot be taken back
	}
	header := c.Response().Header()
	switch p.Status {
	case http.StatusUnauthorized:
		header.Set(echo.HeaderWWWAuthenticate, "Bearer")
		if isJobView(c.Request().URL.Path) {
			header.Add(echo.HeaderWWWAuthenticate, `Basic realm="Fairhook: any user, and an admin's API key as password"`)
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		header.Set(echo.HeaderRetryAfter, retryAfter(p.retryAfter))
	default:
		if p.retryAfter > 0 {
			header.Set(echo.HeaderRetryAfter, retryAfter(p.retryAfter))
		}
	}
	var rate *errRate
	if errors.As(err, &rate) {
		header.Set(headerRateLimitPolicy, rate.policies)
		header.Set(headerRateLimit, rate.status)
	}
	// What a handler had prepared for an answer that it did not give.
	header.Del(echo.HeaderLocation)
	header.Set(echo.HeaderCacheControl, "no-store")
	header.Set(echo.HeaderContentType, "application/problem+json")
	c.Response().WriteHeader(p.Status)
	encoder := json.NewEncoder(c.Response())
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(p) // the client may have left; there is nobody to tell
}

// retryAfter is a Retry-After header in whole seconds, at least one.
func retryAfter(wait time.Duration) string { return strconv.FormatInt(retryAfterSeconds(wait), 10) }

func retryAfterSeconds(wait time.Duration) int64 {
	return max(int64((wait+time.Second-1)/time.Second), 1)
}
