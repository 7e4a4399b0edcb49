package courier

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// phase is how far a request came.
type phase int

const (
	phaseNone      phase = iota // nothing was begun, or a connection is being waited for
	phaseResolve                // looking up the name
	phaseConnect                // connecting
	phaseHandshake              // TLS
	phaseExchange               // connected: sending, or waiting for the answer
	phaseBody                   // the answer's header is there
)

// errRefusedTwice ends the transport's repeating of a request.
var errRefusedTwice = errors.New("the receiver's server refused the request's stream twice")

// recorder learns from net/http where a request's time goes.
//
// The transport connects in goroutines of its own, which may outlive the
// request: every hook may be called at any time, also after the request has
// ended.
type recorder struct {
	start time.Time

	mu       sync.Mutex // guards all below
	at       phase
	dns      span
	connect  span
	tls      span
	auth     span
	first    time.Time // first byte of the answer
	conn     net.Conn
	wrote    bool // the header went out over conn
	repeated int  // times a request that was written has been sent again
}

// span is a phase with its beginning and end, each zero where it did not happen.
type span struct{ begun, ended time.Time }

func newRecorder() *recorder { return &recorder{start: time.Now()} }

// attach makes the requests of a context report to the recorder.
func (r *recorder) attach(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart:          func(httptrace.DNSStartInfo) { r.begin(&r.dns, phaseResolve) },
		DNSDone:           func(info httptrace.DNSDoneInfo) { r.end(&r.dns, phaseConnect, info.Err) },
		ConnectStart:      func(_, _ string) { r.begin(&r.connect, phaseConnect) },
		ConnectDone:       func(_, _ string, err error) { r.end(&r.connect, phaseConnect, err) },
		TLSHandshakeStart: func() { r.begin(&r.tls, phaseHandshake) },
		TLSHandshakeDone:  func(_ tls.ConnectionState, err error) { r.end(&r.tls, phaseExchange, err) },
		GotConn:           r.gotConn,
		WroteHeaders:      r.wroteHeaders,
		GotFirstResponseByte: func() {
			now := time.Now()
			r.mu.Lock()
			defer r.mu.Unlock()
			r.first = now
		},
	})
}

// begin notes the first beginning of a phase: several addresses may be tried.
func (r *recorder) begin(s *span, at phase) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.begun.IsZero() {
		s.begun = now
	}
	r.at = max(r.at, at)
}

// end notes the first success of a phase.
func (r *recorder) end(s *span, next phase, err error) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || !s.ended.IsZero() {
		return
	}
	s.ended = now
	r.at = max(r.at, next)
}

func (r *recorder) gotConn(info httptrace.GotConnInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = phaseExchange
	r.conn, r.wrote = info.Conn, false
	if info.Reused {
		// What was being connected meanwhile is not what carries the request.
		r.dns, r.connect, r.tls = span{}, span{}, span{}
	}
}

func (r *recorder) wroteHeaders() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrote = true
}

// mayRepeat is asked by the transport, through GetBody, before it sends a
// request again; an error keeps it from doing so. Over HTTP/1.1 it asks only
// when nothing was written. Over HTTP/2 it asks when the stream was refused,
// which one repetition is allowed for.
func (r *recorder) mayRepeat() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	conn, ok := r.conn.(*tls.Conn)
	if !ok || !r.wrote || conn.ConnectionState().NegotiatedProtocol != "h2" {
		return nil
	}
	if r.repeated > 0 {
		return errRefusedTwice
	}
	r.repeated++
	r.wrote = false // it asks again if the repetition takes a new connection
	return nil
}

// alert is the TLS alert by which the receiver ended an HTTP/2 connection before its
// first request, where err is all that net/http says of that, and err itself
// otherwise. The connection is closed by then, and remembers it.
func (r *recorder) alert(err error) error {
	r.mu.Lock()
	conn, secure := r.conn.(*tls.Conn)
	r.mu.Unlock()
	if !secure || !strings.Contains(err.Error(), notEstablished) {
		return err
	}
	_ = conn.SetReadDeadline(time.Unix(1, 0)) // should it be alive against all expectation
	if _, ended := conn.Read(make([]byte, 1)); ended != nil && remoteAlert(ended) {
		return ended
	}
	return err
}

// phase is how far the request has come.
func (r *recorder) phase() phase {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

// timings is the record up to now, which is the end of the attempt.
func (r *recorder) timings() webhook.Timings {
	total := time.Since(r.start).Microseconds()
	r.mu.Lock()
	defer r.mu.Unlock()
	timings := webhook.Timings{
		DNS: r.dns.micros(), Connect: r.connect.micros(), TLS: r.tls.micros(), Auth: r.auth.micros(), Total: &total,
	}
	if !r.first.IsZero() {
		first := r.first.Sub(r.start).Microseconds()
		timings.FirstByte = &first
	}
	return timings
}

// waited notes a wait for authorization, begun at a moment and over now.
func (r *recorder) waited(begun time.Time) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = span{begun, now}
}

func (s span) micros() *int64 {
	if s.begun.IsZero() || s.ended.IsZero() {
		return nil
	}
	d := s.ended.Sub(s.begun).Microseconds()
	return &d
}
