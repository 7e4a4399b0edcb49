package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"
)

// Error is an answer of Fairhook that is not a success: the problem document
// (RFC 9457) of its body, or what could be said of an answer without one, such
// as a proxy's. Errors without an answer (no connection, the context's end) are
// not of this type.
type Error struct {
	// Status is the HTTP status code.
	Status int `json:"-"`
	// Type is the URI that names the kind of problem. Its last part is stable:
	// see Code.
	Type   string `json:"type"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	// RequestID is the id under which Fairhook's logs have the request.
	RequestID string `json:"request_id"`
	// Errors name the fields at fault, all of them at once.
	Errors []FieldError `json:"errors"`
	// RetryAfter is how long the server asks to wait, and 0 where it does not.
	RetryAfter time.Duration `json:"-"`
}

// FieldError names one field of a request and what is wrong with it.
type FieldError struct {
	// Pointer is the JSON Pointer (RFC 6901) of the field in the request's body;
	// empty stands for the body as a whole, or for Parameter.
	Pointer string `json:"pointer"`
	// Parameter is the query or path parameter, where it is not in the body.
	Parameter string `json:"parameter"`
	Detail    string `json:"detail"`
}

// Error says what the answer was, on one line.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "fairhook: %d %s", e.Status, e.Title)
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	for i, field := range e.Errors {
		if i == 0 {
			b.WriteString(" (")
		} else {
			b.WriteString("; ")
		}
		if at := field.Pointer + field.Parameter; at != "" {
			b.WriteString(at + ": ")
		}
		b.WriteString(field.Detail)
	}
	if len(e.Errors) > 0 {
		b.WriteString(")")
	}
	if e.RequestID != "" {
		b.WriteString(" [request " + e.RequestID + "]")
	}
	return b.String()
}

// Code is the last part of Type, such as "not-found" or "rate-limited", or
// empty where the answer was no problem document of Fairhook's.
func (e *Error) Code() string {
	if i := strings.LastIndexByte(e.Type, '/'); i >= 0 {
		return e.Type[i+1:]
	}
	return ""
}

// IsNotFound reports whether err is a 404: no such webhook or event.
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

// IsUnauthorized reports whether err is a 401: the API key is missing or wrong.
func IsUnauthorized(err error) bool { return hasStatus(err, http.StatusUnauthorized) }

// IsInvalid reports whether err is a 400 or 422: the request cannot be parsed or
// breaks a rule. Errors of the *Error say which.
func IsInvalid(err error) bool {
	return hasStatus(err, http.StatusBadRequest) || hasStatus(err, http.StatusUnprocessableEntity)
}

// IsConflict reports whether err is a 409: the idempotency key is in use by a
// request that has not finished.
func IsConflict(err error) bool { return hasStatus(err, http.StatusConflict) }

// IsTooLarge reports whether err is a 413. Its Detail names the limit.
func IsTooLarge(err error) bool { return hasStatus(err, http.StatusRequestEntityTooLarge) }

// IsRateLimited reports whether err is a 429.
func IsRateLimited(err error) bool { return hasStatus(err, http.StatusTooManyRequests) }

// IsUnavailable reports whether err is a 503: Fairhook, or what it needs, is away
// or too busy.
func IsUnavailable(err error) bool { return hasStatus(err, http.StatusServiceUnavailable) }

func hasStatus(err error, status int) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == status
}

// decodeError makes the Error of an answer. It cannot fail: an answer that is
// no problem document still has a status.
func decodeError(got *answer) *Error {
	e := &Error{}
	mediaType, _, _ := mime.ParseMediaType(got.header.Get("Content-Type"))
	if mediaType != "application/problem+json" || json.Unmarshal(got.body, e) != nil {
		e = &Error{Detail: "the answer is not Fairhook's, but perhaps a proxy's: it has no problem document"}
	}
	e.Status = got.status
	if e.Title == "" {
		e.Title = http.StatusText(got.status)
	}
	if e.RequestID == "" {
		e.RequestID = got.header.Get("X-Request-Id")
	}
	e.RetryAfter = retryAfter(&http.Response{StatusCode: got.status, Header: got.header})
	return e
}
