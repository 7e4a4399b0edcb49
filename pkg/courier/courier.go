// Package courier sends one signed request to one receiver, says what happened
// (Send), and decides what that means for the delivery (Decide).
//
// One attempt is one request: nothing here tries again. When the next attempt
// is due is decided by Decide, which is pure, and owned by River, which keeps
// the job. Send never fails: a receiver that refuses, hangs or talks nonsense is
// a Result like any other.
//
// Which addresses a request may reach is up to the client it is given: use one
// of package egress.
package courier

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// Headers of a request beside those of package signature.
const (
	HeaderEventType = "fairhook-event-type"
	HeaderAttempt   = "fairhook-attempt"
)

// MaxResponseBody is how many bytes of an answer's body are read, so that the
// connection can be used again when the body ends within them. A longer body is
// left unread and its connection closed.
const MaxResponseBody = 64 << 10

// Request is one attempt to be made.
type Request struct {
	URL         string
	EventID     webhook.ID // the webhook-id header: the same for every attempt of an event
	EventType   string
	ContentType string // of Body; empty means webhook.ContentTypeJSON
	Body        []byte // sent byte for byte
	Number      int    // of this attempt, from 1
	// Timestamp is the moment of this attempt by the database's clock. Its whole
	// seconds are signed.
	Timestamp time.Time
	// Signer makes the request's signatures. Where it cannot, nothing is sent.
	Signer *signature.Signer
	// Headers are the webhook's own. Reserved ones (webhook.ReservedHeader) are
	// passed over, so they never replace ours.
	Headers map[string]webhook.Secret
	// Authorize, if it is set, gives the Authorization header, in place of one among
	// Headers. It is part of the attempt and must end with ctx. Where it fails nothing
	// is sent; its error is an *identity.TokenError.
	Authorize func(ctx context.Context) (webhook.Secret, error)
	// Secrets are what must not be recorded even if the receiver repeats it, besides the
	// values of Headers and what Authorize gives.
	Secrets []webhook.Secret
	// Timeout bounds the whole attempt, from name resolution to the end of the
	// answer. Zero means webhook.DefaultTimeoutSeconds.
	Timeout time.Duration
	// UserAgent is the User-Agent header, UserAgent(version). Empty means that of
	// the running program's build information.
	UserAgent string
}

// Result is what became of an attempt.
type Result struct {
	// Interrupted says that the caller's context ended before the receiver's
	// answer began. Nothing else is then known but StartedAt and Timings, Reason
	// is empty, and the delivery goes back uncounted.
	Interrupted bool

	Reason webhook.Reason
	// StatusCode is the answer's, or 0 where none came.
	StatusCode int
	// RetryAfter is what the answer asked for, more than 0 and at most
	// MaxRetryAfter; it counts only where HasRetryAfter is set.
	RetryAfter    time.Duration
	HasRetryAfter bool
	// StartedAt is the request's Timestamp.
	StartedAt time.Time
	// Timings has all but QueueWait, which the caller knows.
	Timings webhook.Timings
	// Response is the beginning of the answer's body, at most
	// webhook.MaxResponseSnippet bytes, in valid UTF-8 without NUL. It is empty
	// where no answer came, and always for ReasonBlocked. Where it repeats a secret of
	// the request's, of at least 8 bytes and letter by letter, that is masked.
	Response string
	// Detail says more about Reason, in words that may be shown to the webhook's
	// owner: no address, nothing of our network or resolver. Empty where there is
	// nothing to add.
	Detail string
}

// errDeadline is the cause with which an attempt's own deadline ends its context.
var errDeadline = errors.New("the attempt's deadline passed")

// Send makes one request and reads the answer, all within one deadline.
//
// A complete answer is judged by its status. So is an incomplete one that is not
// 2xx: a broken body does not make a 503 anything else. A 2xx counts as
// delivered only if its body, up to MaxResponseBody, arrived in time and whole;
// otherwise the receiver's acceptance is in doubt, and the attempt fails as
// slow_body, reset or bad_response. A body beyond MaxResponseBody is not read
// and does no harm.
//
// When ctx ends before an answer has begun, the Result is Interrupted; once it
// has begun, its status decides.
//
// Of the client only its Transport is used, by one RoundTrip: redirects are not
// followed whatever the client's policy, cookies neither kept nor sent. net/http
// itself sends a request again in two cases, in both of which the receiver's
// application has one request to handle. Over HTTP/1.1: when the reused
// connection turned out closed before a byte was written. Over HTTP/2: once,
// when the receiver's server says that it did not process the stream (RFC 9113,
// sections 6.8 and 8.7; a stream's PROTOCOL_ERROR is taken for that as well).
// For a request without a body, the limit to that is net/http's own, six times.
func Send(ctx context.Context, client *http.Client, req *Request) Result {
	result := Result{StartedAt: req.Timestamp}
	rec := newRecorder()

	timeout := req.Timeout
	if timeout <= 0 {
		timeout = webhook.DefaultTimeoutSeconds * time.Second
	}
	attempt, cancel := context.WithTimeoutCause(ctx, timeout, errDeadline)
	defer cancel()

	httpReq, err := newHTTPRequest(rec.attach(attempt), req, rec)
	secrets := newMask(req)
	if err == nil && req.Authorize != nil {
		err = authorize(attempt, req, rec, httpReq, secrets)
	}
	if err != nil {
		result.Timings = rec.timings()
		if ctx.Err() != nil {
			result.Interrupted = true
			return result
		}
		result.Reason, result.Detail = classify(facts{err: err})
		result.RetryAfter, result.HasRetryAfter = retryAfterOf(err, req.Timestamp, result.Timings)
		return result
	}
	transport := client.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	resp, err := transport.RoundTrip(httpReq)
	if err != nil {
		result.Timings = rec.timings()
		if ctx.Err() != nil {
			result.Interrupted = true
			return result
		}
		result.Reason, result.Detail = classify(facts{err: rec.alert(err), late: attempt.Err() != nil, phase: rec.phase()})
		result.Detail = secrets.hide(result.Detail, true)
		return result
	}

	if resp.StatusCode < 100 || resp.StatusCode > 999 {
		// net/http lets "000" pass, and over HTTP/2 any number.
		_ = resp.Body.Close()
		result.Reason, result.Detail = webhook.ReasonBadResponse, "the answer's status is not a number from 100 to 999"
		result.Timings = rec.timings()
		return result
	}
	snippet, whole, err := readBody(resp.Body)
	// Closing early costs the connection, or with HTTP/2 the stream; there is
	// nobody to tell about a failure to close.
	_ = resp.Body.Close()
	result.Timings = rec.timings()
	result.StatusCode = resp.StatusCode
	result.Response = cleanText([]byte(secrets.hide(string(snippet), len(snippet) > webhook.MaxResponseSnippet)), webhook.MaxResponseSnippet)
	if text := resp.Header.Get("Retry-After"); text != "" {
		now := req.Timestamp.Add(time.Duration(*result.Timings.Total) * time.Microsecond)
		result.RetryAfter, result.HasRetryAfter = ParseRetryAfter(text, now)
	}
	if ctx.Err() != nil {
		err = nil // it was us who broke off the answer: its status decides
	}
	result.Reason, result.Detail = classify(facts{
		status: resp.StatusCode, err: err, late: attempt.Err() != nil, phase: phaseBody, unread: !whole,
	})
	result.Detail = secrets.hide(result.Detail, true)
	return result
}

// newHTTPRequest builds the signed request.
func newHTTPRequest(ctx context.Context, req *Request, rec *recorder) (*http.Request, error) {
	if !req.Signer.CanSign() {
		return nil, errNoKey
	}
	if len(req.URL) > webhook.MaxURLLength { // the one rule that the client cannot see: it gets the URL parsed
		return nil, errLongURL
	}
	httpReq, err := http.NewRequestWithContext(ctx, http.MethodPost, req.URL, nil)
	if err != nil {
		return nil, errURL
	}
	body := func() io.ReadCloser { return io.NopCloser(bytes.NewReader(req.Body)) }
	httpReq.ContentLength = int64(len(req.Body))
	httpReq.Body = http.NoBody // sends Content-Length: 0
	if len(req.Body) > 0 {
		httpReq.Body = body()
		httpReq.GetBody = func() (io.ReadCloser, error) {
			if err := rec.mayRepeat(); err != nil {
				return nil, err
			}
			return body(), nil
		}
	}

	header := httpReq.Header
	for name, value := range req.Headers {
		if webhook.ReservedHeader(name) {
			continue
		}
		// net/http repeats a POST by itself after a broken connection if it carries
		// Idempotency-Key or X-Idempotency-Key, and looks for them in canonical
		// spelling. Header names are case-insensitive to receivers.
		header[strings.ToLower(name)] = []string{value.Reveal()}
	}
	id := req.EventID.String()
	header.Set(signature.HeaderID, id)
	header.Set(signature.HeaderTimestamp, strconv.FormatInt(req.Timestamp.Unix(), 10))
	req.Signer.Sign(id, req.Timestamp, req.Body, func(name, value string) { header[name] = []string{value} })
	header.Set(HeaderEventType, req.EventType)
	header.Set(HeaderAttempt, strconv.Itoa(req.Number))
	header.Set("Content-Type", orDefault(req.ContentType, webhook.ContentTypeJSON))
	header.Set("User-Agent", orDefault(req.UserAgent, buildUserAgent()))
	return httpReq, nil
}

// readBody reads an answer's body: its beginning, for the record, and the rest
// up to MaxResponseBody, for the connection's sake. whole says that the body
// ended within that. The error is what cut it short, and nil at its end.
func readBody(body io.Reader) (snippet []byte, whole bool, err error) {
	if body == http.NoBody {
		return nil, true, nil
	}
	// One rune more than is kept, so that the cut can fall between two.
	snippet = make([]byte, webhook.MaxResponseSnippet+utf8.UTFMax)
	n := 0
	for n < len(snippet) && err == nil {
		var read int
		read, err = body.Read(snippet[n:])
		n += read
	}
	if err == nil {
		_, err = io.CopyN(io.Discard, body, int64(MaxResponseBody-n+1))
	}
	snippet = snippet[:n]
	if errors.Is(err, io.EOF) {
		return snippet, true, nil
	}
	return snippet, false, err
}

// cleanText makes text of bytes from outside: valid UTF-8 without NUL, at most
// limit bytes.
func cleanText(raw []byte, limit int) string {
	text := strings.ToValidUTF8(string(raw), string(utf8.RuneError))
	text = strings.ReplaceAll(text, "\x00", "")
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}

// UserAgent is the User-Agent header for a version of Fairhook.
func UserAgent(version string) string { return "Fairhook/" + version }

// buildUserAgent takes the version from the program's build information.
var buildUserAgent = sync.OnceValue(func() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return UserAgent(info.Main.Version)
	}
	return UserAgent("dev")
})

func orDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
