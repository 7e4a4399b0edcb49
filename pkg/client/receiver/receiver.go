package receiver

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Defaults of a Receiver.
const (
	// DefaultMaxBody is how long a body may be, in bytes: as long as Fairhook takes them
	// unless it was told otherwise.
	DefaultMaxBody = 1 << 20
	// DefaultLease is how long handling may take.
	DefaultLease = time.Minute
	// DefaultKeep is how long it is remembered that a message was handled: as long
	// as Fairhook tries a delivery unless it was told otherwise.
	DefaultKeep = 4 * 24 * time.Hour
)

const (
	// retryAfter is what the sender is asked to wait, in seconds, where a message is
	// still being handled or the Dedup is away.
	retryAfter = 5
	// settleTimeout bounds Commit and Release, which are due even if the request's
	// context has ended.
	settleTimeout = 5 * time.Second
)

// Receiver is the way into an HTTP server. It is safe for use by several goroutines
// at a time.
type Receiver struct {
	verifier *Verifier
	dedup    Dedup
	maxBody  int64
	scope    string
	lease    time.Duration
	keep     time.Duration
	onError  func(*http.Request, error)
}

// Option changes a Receiver from its defaults.
type Option func(*Receiver)

// WithMaxBody sets how long a body may be, in bytes: default [DefaultMaxBody].
func WithMaxBody(n int64) Option { return func(rc *Receiver) { rc.maxBody = n } }

// WithScope puts a text, which must not contain a slash, and a slash before the
// messages' ids in what the Dedup is asked for. Give each sender its own where several
// share one Dedup: otherwise a sender could have the messages of another taken for
// handled. Give each webhook its own path and scope where several lead to one receiver
// and each is to be handled, since an event has the same id in all of them.
func WithScope(scope string) Option { return func(rc *Receiver) { rc.scope = scope } }

// WithLease sets how long handling may take: default [DefaultLease]. The handler's
// context ends then, and the message may be handled again. Choose it longer than the
// sender waits for an answer.
func WithLease(d time.Duration) Option { return func(rc *Receiver) { rc.lease = d } }

// WithKeep sets how long it is remembered that a message was handled: default
// [DefaultKeep]. It must be at least twice the verifier's tolerance, or else messages
// could be replayed that still verify.
func WithKeep(d time.Duration) Option { return func(rc *Receiver) { rc.keep = d } }

// WithOnError has a function called with each reason why a request was not answered
// with success, and with errors of the Dedup; for logs. It is called by several
// goroutines at a time. Refusals match ErrMalformed, ErrTooOld, ErrTooNew and
// ErrNoMatch with errors.Is.
func WithOnError(f func(*http.Request, error)) Option {
	return func(rc *Receiver) { rc.onError = f }
}

// New makes a Receiver.
func New(verifier *Verifier, dedup Dedup, opts ...Option) (*Receiver, error) {
	if verifier == nil || dedup == nil {
		return nil, errors.New("receiver: there must be a verifier and a dedup")
	}
	rc := &Receiver{
		verifier: verifier, dedup: dedup, maxBody: DefaultMaxBody, lease: DefaultLease, keep: DefaultKeep,
		onError: func(*http.Request, error) {},
	}
	for _, opt := range opts {
		opt(rc)
	}
	switch {
	case rc.maxBody <= 0:
		return nil, fmt.Errorf("receiver: the longest body must be at least a byte long: %d", rc.maxBody)
	case rc.lease <= 0:
		return nil, fmt.Errorf("receiver: the lease must be longer than nothing: %s", rc.lease)
	case rc.keep < 2*verifier.tolerance:
		return nil, fmt.Errorf("receiver: handled messages must be remembered for at least twice the tolerance, %s: %s", 2*verifier.tolerance, rc.keep)
	case strings.Contains(rc.scope, "/"):
		return nil, fmt.Errorf("receiver: the scope must not contain a slash: %q", rc.scope)
	case rc.onError == nil:
		return nil, errors.New("receiver: there must be a function for errors")
	}
	return rc, nil
}

// Handle makes an http.Handler of a function that handles one message.
//
// An error, which is not shown to the sender, answers 500, and the message is handled
// again when it comes again; nil answers 204. The context ends with the request's and
// with the lease. Other answers:
//
//   - 204 to a message that was handled before;
//   - 400, 401, 405 and 413 to what is no message, not signed, no POST and too long;
//   - 503 with Retry-After to a message that another request is being handled for,
//     and while the Dedup is away. Fairhook, and other senders that follow the
//     specification, come again later, and Fairhook takes no attempt of the
//     delivery's for it: if handling should fail after all, there is one left.
func (rc *Receiver) Handle(handle func(context.Context, *Message) error) http.Handler {
	return rc.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		message, _ := FromContext(r.Context())
		if err := handle(r.Context(), message); err != nil {
			rc.onError(r, fmt.Errorf("receiver: handle message %q: %w", message.ID, err))
			refuse(w, http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
}

// Middleware puts the verification in front of a handler, which finds the message with
// [FromContext], and its body in the request again. Answers that it gives itself are
// those of Handle. How long a body may take to arrive is for the http.Server to say,
// by its ReadTimeout.
//
// The message counts as handled from the moment at which the handler's answer begins,
// if that is a 2xx: what the sender is told and what is remembered cannot differ. After
// any other answer, and after a panic before one, it is handled when it comes again. If
// the Dedup cannot write down that it was handled, the answer is sent all the same,
// since the work is done; until the lease ends, repetitions still find the claim.
func (rc *Receiver) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			refuse(w, http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, rc.maxBody))
		if err != nil {
			rc.onError(r, fmt.Errorf("receiver: read the body: %w", err))
			if _, tooLong := errors.AsType[*http.MaxBytesError](err); tooLong {
				refuse(w, http.StatusRequestEntityTooLarge)
			} else {
				refuse(w, http.StatusBadRequest)
			}
			return
		}
		message, err := rc.verifier.Verify(r.Header, body)
		if err != nil {
			rc.onError(r, err)
			if errors.Is(err, ErrMalformed) {
				refuse(w, http.StatusBadRequest)
			} else {
				refuse(w, http.StatusUnauthorized)
			}
			return
		}
		rc.handleOnce(next, w, r, message)
	})
}

// handleOnce calls the handler unless the message is or was handled by another call.
func (rc *Receiver) handleOnce(next http.Handler, w http.ResponseWriter, r *http.Request, message *Message) {
	ctx, cancel := context.WithTimeout(r.Context(), rc.lease)
	defer cancel()
	key, token := rc.scope+"/"+message.ID, rand.Text()
	claim, err := rc.dedup.Claim(ctx, key, token, rc.lease)
	switch {
	case err != nil:
		rc.onError(r, fmt.Errorf("receiver: claim message %q: %w", message.ID, err))
		comeAgain(w)
		return
	case claim == Handled:
		w.WriteHeader(http.StatusNoContent)
		return
	case claim != Claimed:
		comeAgain(w)
		return
	}

	settle := func(end func(context.Context) error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()
		if err := end(ctx); err != nil {
			rc.onError(r, fmt.Errorf("receiver: end the claim of message %q: %w", message.ID, err))
		}
	}
	answer := &answer{ResponseWriter: w, accept: func() {
		settle(func(ctx context.Context) error { return rc.dedup.Commit(ctx, key, token, rc.keep) })
	}}
	defer func() {
		if !answer.accepted {
			settle(func(ctx context.Context) error { return rc.dedup.Release(ctx, key, token) })
		}
	}()
	r = r.WithContext(context.WithValue(ctx, contextKey{}, message))
	r.Body = io.NopCloser(bytes.NewReader(message.Body))
	next.ServeHTTP(answer, r)
	if !answer.begun { // net/http makes it a 200
		answer.WriteHeader(http.StatusOK)
	}
}

type contextKey struct{}

// FromContext is the message that a handler behind Middleware was called for.
func FromContext(ctx context.Context) (*Message, bool) {
	message, ok := ctx.Value(contextKey{}).(*Message)
	return message, ok
}

// answer is a ResponseWriter that says when a success begins, before it does. It has
// no Unwrap, which would lead around it.
type answer struct {
	http.ResponseWriter
	accept          func()
	begun, accepted bool
}

func (a *answer) WriteHeader(status int) {
	if !a.begun && status >= 200 { // 1xx go ahead of an answer
		a.begun = true
		if status <= 299 {
			a.accepted = true
			a.accept()
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if !a.begun {
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(b)
}

// refuse answers with a status and nothing more: why is for the receiver's logs.
func refuse(w http.ResponseWriter, status int) { http.Error(w, http.StatusText(status), status) }

// comeAgain asks the sender for the same message, later.
func comeAgain(w http.ResponseWriter) {
	w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	refuse(w, http.StatusServiceUnavailable)
}
