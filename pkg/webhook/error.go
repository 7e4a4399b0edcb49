package webhook

import (
	"errors"
	"fmt"
	"time"
)

// Code says what kind of trouble an Error is. Anything that is not an *Error is
// internal: it is logged, and shown to nobody.
type Code string

// The closed set of codes. Each is the last part of the problem type URI that
// clients see, so the words are a contract.
const (
	CodeMalformed    Code = "malformed-request" // cannot be parsed: 400
	CodeInvalid      Code = "invalid-request"   // parsed, and breaks a rule: 422
	CodeUnauthorized Code = "unauthorized"      // no valid key: 401
	CodeForbidden    Code = "forbidden"         // a valid key without the right to do this: 403
	CodeNotFound     Code = "not-found"         // 404
	CodeConflict     Code = "conflict"          // 409
	CodeTooLarge     Code = "too-large"         // 413
	CodeRateLimited  Code = "rate-limited"      // 429, with Retry-After
	CodeBacklogFull  Code = "backlog-full"      // 429, with Retry-After: too many deliveries wait already
	CodeUnavailable  Code = "unavailable"       // 503, with Retry-After: try again, nothing was kept
)

// Error is the only error whose text a caller of the API may see.
type Error struct {
	Code    Code
	Message string       // one sentence, safe to show
	Fields  []FieldError // what is wrong where, if it can be said
	// RetryAfter is how long the caller should wait; it is shown for
	// CodeRateLimited, CodeBacklogFull and CodeUnavailable.
	RetryAfter time.Duration
}

// FieldError names one field of a request and what is wrong with it.
type FieldError struct {
	// Pointer is the JSON Pointer (RFC 6901) of the field in the request body,
	// or empty where the trouble is with the body as a whole.
	Pointer string `json:"pointer"`
	// Parameter is the query or path parameter, where it is not in the body.
	Parameter string `json:"parameter,omitempty"`
	Detail    string `json:"detail"`
}

func (e *Error) Error() string {
	if len(e.Fields) == 0 {
		return e.Message
	}
	return fmt.Sprintf("%s (%s: %s)", e.Message, e.Fields[0].Pointer+e.Fields[0].Parameter, e.Fields[0].Detail)
}

// Errorf makes an Error without fields.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// ErrorCode is the code of the *Error in err's chain, or empty when there is
// none and the error is internal.
func ErrorCode(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
