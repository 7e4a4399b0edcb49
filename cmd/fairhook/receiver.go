//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	// maxReceived bounds the body that the demo receiver reads, in bytes.
	maxReceived = 64 << 20
	// maxUnseen is how many deliveries wait to be shown. The receiver answers
	// whether anybody looks or not.
	maxUnseen = 256
)

// receiver is a subscriber as one would write it: an HTTP server that verifies
// with the Standard Webhooks project's own library, not with Fairhook's code.
type receiver struct {
	url      string
	received chan delivery // what came, for whoever shows it
	unseen   atomic.Int64  // how many found received full

	listener net.Listener
	server   *http.Server
	served   chan error
	// verify says what is wrong with a request's signature; nil: nobody looks.
	verify atomic.Pointer[func(body []byte, header http.Header) error]

	statuses []int // to answer with, in turn, the last one from then on
	delay    time.Duration
	answered atomic.Int64
}

// delivery is one request as the receiver saw it.
type delivery struct {
	method, target, proto, host string
	header                      http.Header
	body                        []byte
	at                          time.Time
	verified                    bool  // somebody looked at the signature
	fault                       error // why it did not verify
	status                      int   // that was answered
}

// startReceiver starts a receiver on a free port. It refuses everything until
// trust.
func startReceiver() (*receiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	rc := newReceiver(listener, []int{http.StatusNoContent}, 0)
	rc.start()
	return rc, nil
}

// newReceiver makes a receiver that answers what verifies with these statuses, each
// after a delay. It refuses everything until trust or trustAll.
func newReceiver(listener net.Listener, statuses []int, delay time.Duration) *receiver {
	rc := &receiver{
		url:      "http://" + listener.Addr().String() + "/",
		received: make(chan delivery, maxUnseen),
		listener: listener,
		served:   make(chan error, 1),
		statuses: statuses,
		delay:    delay,
	}
	refuse := func([]byte, http.Header) error { return errors.New("no secret is known yet") }
	rc.verify.Store(&refuse)
	rc.server = &http.Server{Handler: rc, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: time.Minute}
	return rc
}

// start begins to serve.
func (rc *receiver) start() { go func() { rc.served <- rc.server.Serve(rc.listener) }() }

// trust sets the secret with which deliveries must be signed.
func (rc *receiver) trust(secret string) error {
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return fmt.Errorf("read the signing secret: %w", err)
	}
	verify := verifier.Verify
	rc.verify.Store(&verify)
	return nil
}

// trustAll has nothing verified.
func (rc *receiver) trustAll() { rc.verify.Store(nil) }

// ServeHTTP answers 401 to what is not signed, and what it was told to otherwise.
func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReceived))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	d := delivery{
		method: r.Method, target: r.RequestURI, proto: r.Proto, host: r.Host, header: r.Header, body: body,
		at: time.Now(), status: http.StatusUnauthorized,
	}
	if verify := rc.verify.Load(); verify != nil {
		d.verified, d.fault = true, (*verify)(body, r.Header)
	}
	if d.fault == nil {
		n := int(rc.answered.Add(1)) - 1
		d.status = rc.statuses[min(n, len(rc.statuses)-1)]
	}
	select {
	case rc.received <- d:
	default:
		rc.unseen.Add(1)
	}
	if rc.delay > 0 {
		select {
		case <-time.After(rc.delay):
		case <-r.Context().Done():
			return
		}
	}
	if d.fault != nil {
		http.Error(w, "the signature does not verify", http.StatusUnauthorized)
		return
	}
	w.WriteHeader(d.status)
}

// close ends requests that are under way in order, if they end soon.
func (rc *receiver) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := rc.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = rc.server.Close()
	}
	if served := <-rc.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
