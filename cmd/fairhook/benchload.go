//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// minPayload is a payload with one character in it.
	minPayload = len(payloadStart) + 1 + len(payloadEnd)

	payloadStart, payloadEnd = `{"data":"`, `"}`

	// warmItems is how many events of the warm-up are in one request.
	warmItems = 500
	// warmTries and warmPause bound the wait for an ingest that takes all of it.
	warmTries = 60
	warmPause = 500 * time.Millisecond
	// answerTimeout bounds the wait for one answer.
	answerTimeout = time.Minute
	// refusedPause keeps a generator that is refused from asking in a tight loop.
	refusedPause = 20 * time.Millisecond
	// sinkBody bounds what the receiver reads of one delivery, in bytes.
	sinkBody = 16 << 20
)

// benchPayload is a JSON text of the given size that does not compress well, as
// payloads with ids and signatures in them do not.
func benchPayload(size int) []byte {
	random := make([]byte, size)
	_, _ = rand.Read(random) // never fails
	text := base64.StdEncoding.EncodeToString(random)
	return []byte(payloadStart + text[:size-len(payloadStart)-len(payloadEnd)] + payloadEnd)
}

// request is one to send, as often as needed.
type request struct {
	path string
	body []byte
}

// singleRequests is one request for each webhook.
func singleRequests(webhooks []webhook.ID, payload []byte) []request {
	requests := make([]request, len(webhooks))
	for i, id := range webhooks {
		requests[i] = request{"/v1/events", appendSubmission(nil, id, payload)}
	}
	return requests
}

// batchRequests are requests with so many events each that together reach every
// webhook.
func batchRequests(webhooks []webhook.ID, payload []byte, items int) []request {
	requests := make([]request, (len(webhooks)+items-1)/items)
	for r := range requests {
		body := []byte{'['}
		for i := range items {
			if i > 0 {
				body = append(body, ',')
			}
			body = appendSubmission(body, webhooks[(r*items+i)%len(webhooks)], payload)
		}
		requests[r] = request{"/v1/events/batch", append(body, ']')}
	}
	return requests
}

func appendSubmission(body []byte, id webhook.ID, payload []byte) []byte {
	body = fmt.Appendf(body, `{"webhook_id":%q,"type":%q,"payload":`, id, benchType)
	return append(append(body, payload...), '}')
}

// load sends requests on several connections, on each of them one at a time. It
// speaks HTTP/1.1 by itself: the generator shares the machine with what it
// measures, and net/http's client would take as much of it as the server does.
type load struct {
	address, key string
	connections  int
}

func newLoad(address, key string, connections int) *load {
	return &load{address, key, connections}
}

// measurement is what came of a run.
type measurement struct {
	// accepted is how many events were acknowledged while it was measured, and
	// acknowledged how many in all.
	accepted, acknowledged int
	// refused is how many events were answered with 429 or 503.
	refused int
	// latencies are those of the requests that were accepted while it was
	// measured, in ascending order.
	latencies []time.Duration
}

func (m *measurement) add(o measurement) {
	m.accepted += o.accepted
	m.acknowledged += o.acknowledged
	m.refused += o.refused
	m.latencies = append(m.latencies, o.latencies...)
}

// warm sends every request until there was a time that all of them were accepted,
// and returns how many events were acknowledged. After a case at full load ingest
// may refuse some for a moment.
func (l *load) warm(ctx context.Context, requests []request) (acknowledged int, err error) {
	for range warmTries {
		m, err := l.start(ctx, requests, len(requests), time.Time{}, time.Time{})
		acknowledged += m.acknowledged
		if err != nil || m.refused == 0 {
			return acknowledged, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(warmPause):
		}
	}
	return acknowledged, fmt.Errorf("ingest still refuses events after %d tries", warmTries)
}

// run sends requests, over and over, for warm and then for measured, and tells
// what was answered in the second of these.
func (l *load) run(ctx context.Context, requests []request, warm, measured time.Duration) (measurement, error) {
	from := time.Now().Add(warm)
	m, err := l.start(ctx, requests, math.MaxInt, from, from.Add(measured))
	slices.Sort(m.latencies)
	return m, err
}

// start sends up to most requests, and, unless to is zero, none after that.
func (l *load) start(ctx context.Context, requests []request, most int, from, to time.Time) (measurement, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		mu    sync.Mutex
		total measurement // guarded by mu
	)
	prepared := make([][]byte, len(requests))
	for i, r := range requests {
		prepared[i] = l.prepare(r)
	}
	take := func() []byte {
		n := int(next.Add(1)) - 1
		if n >= most {
			return nil
		}
		return prepared[n%len(prepared)]
	}
	for range min(l.connections, most) {
		wg.Go(func() {
			m, err := l.work(ctx, take, from, to)
			if err != nil {
				cancel(err) // one fault ends them all
			}
			mu.Lock()
			defer mu.Unlock()
			total.add(m)
		})
	}
	wg.Wait()
	return total, context.Cause(ctx)
}

func (l *load) prepare(r request) []byte {
	return append(fmt.Appendf(nil,
		"POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		r.path, l.address, l.key, len(r.body)), r.body...)
}

// work is one connection.
func (l *load) work(ctx context.Context, take func() []byte, from, to time.Time) (m measurement, err error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", l.address)
	if err != nil {
		return m, fmt.Errorf("connect to ingest: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	reader := bufio.NewReader(conn)
	for to.IsZero() || time.Now().Before(to) {
		text := take()
		if text == nil {
			return m, nil
		}
		begun := time.Now()
		a, err := exchange(conn, reader, text)
		if err != nil {
			if ctx.Err() != nil {
				return m, context.Cause(ctx)
			}
			return m, err
		}
		now := time.Now()
		m.acknowledged += a.accepted
		m.refused += a.refused
		if !now.Before(from) && !now.After(to) && a.accepted > 0 {
			m.accepted += a.accepted
			m.latencies = append(m.latencies, now.Sub(begun))
		}
		if a.refused > 0 && a.accepted == 0 {
			select {
			case <-ctx.Done():
			case <-time.After(refusedPause):
			}
		}
	}
	return m, nil
}

// answer is what one request's events were answered with.
type answer struct{ accepted, refused int }

var (
	acceptedItem = []byte(`"status":202`)
	limitedItem  = []byte(`"status":429`)
	awayItem     = []byte(`"status":503`)
)

// exchange sends a request and reads its answer. Anything but acceptance and
// refusal for now is an error: then it is not the acceptance that is measured.
func exchange(conn net.Conn, reader *bufio.Reader, text []byte) (answer, error) {
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return answer{}, err
	}
	if _, err := conn.Write(text); err != nil {
		return answer{}, fmt.Errorf("send a request: %w", err)
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return answer{}, fmt.Errorf("read an answer: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, fmt.Errorf("read an answer: %w", err)
	}
	switch response.StatusCode {
	case http.StatusAccepted:
		return answer{accepted: 1}, nil
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return answer{refused: 1}, nil
	case http.StatusOK: // of a batch
		a := answer{bytes.Count(body, acceptedItem), bytes.Count(body, limitedItem) + bytes.Count(body, awayItem)}
		if a != (answer{}) {
			return a, nil
		}
	}
	return answer{}, fmt.Errorf("ingest answered %s: %s", response.Status, printable(body))
}

// percentile is the smallest of the values, given in ascending order, that the
// given part of them does not exceed.
func percentile(values []time.Duration, part float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	rank := int(math.Ceil(part * float64(len(values))))
	return values[min(max(rank, 1), len(values))-1]
}

// sink is a receiver that takes everything.
type sink struct {
	url    string
	server *http.Server
	served chan error
}

func startSink() (*sink, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{url: "http://" + listener.Addr().String() + "/", served: make(chan error, 1)}
	s.server = &http.Server{
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, sinkBody)); err != nil {
				http.Error(w, "the body cannot be read", http.StatusBadRequest)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		}),
	}
	go func() { s.served <- s.server.Serve(listener) }()
	return s, nil
}

func (s *sink) close() error {
	err := s.server.Close()
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
