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

	server   *http.Server
	served   chan error
	verifier atomic.Pointer[standardwebhooks.Webhook]
}

// delivery is one request as the receiver saw it.
type delivery struct {
	method, target, proto, host string
	header                      http.Header
	body                        []byte
	at                          time.Time
	fault                       error // why the signature did not verify
}

// startReceiver starts a receiver on a free port. It refuses everything until
// trust.
func startReceiver() (*receiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	rc := &receiver{
		url:      "http://" + listener.Addr().String() + "/",
		received: make(chan delivery, maxUnseen),
		served:   make(chan error, 1),
	}
	rc.server = &http.Server{Handler: rc, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: time.Minute}
	go func() { rc.served <- rc.server.Serve(listener) }()
	return rc, nil
}

// trust sets the secret with which deliveries must be signed.
func (rc *receiver) trust(secret string) error {
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return fmt.Errorf("read the signing secret: %w", err)
	}
	rc.verifier.Store(verifier)
	return nil
}

// ServeHTTP answers 204 to what is signed, and 401 to what is not.
func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReceived))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	d := delivery{r.Method, r.RequestURI, r.Proto, r.Host, r.Header, body, time.Now(), nil}
	if verifier := rc.verifier.Load(); verifier == nil {
		d.fault = errors.New("no secret is known yet")
	} else {
		d.fault = verifier.Verify(body, r.Header)
	}
	select {
	case rc.received <- d:
	default:
		rc.unseen.Add(1)
	}
	if d.fault != nil {
		http.Error(w, "the signature does not verify", http.StatusUnauthorized)
		return
	}
	w.WriteHeader(http.StatusNoContent)
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
