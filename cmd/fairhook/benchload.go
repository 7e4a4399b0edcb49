//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
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
	// lateness is how long after its time a request may be sent.
	lateness = 10 * time.Millisecond
	// textID is the length of an id's text.
	textID = 36
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
	// keep is whether to remember which events were acknowledged.
	keep bool
}

// plan is what to send, and when.
type plan struct {
	// requests are sent in turn, over and over.
	requests []request
	// most is how many to send. Zero: as many as there is time for, up to to.
	most int
	// from and to are the time that is measured. Nothing is sent after to, unless
	// that is zero.
	from, to time.Time
	// begin and every are the pace: request n is sent at begin + n*every, whatever
	// became of those before it. Zero: each connection sends as soon as it is free.
	begin time.Time
	every time.Duration
}

// paced is so many requests a second for a time, from now on.
func paced(requests []request, perSecond int, duration time.Duration) plan {
	return plan{
		requests: requests, most: max(1, int(float64(perSecond)*duration.Seconds())),
		begin: time.Now(), every: time.Second / time.Duration(perSecond),
	}
}

// measurement is what came of a run.
type measurement struct {
	// accepted is how many events were acknowledged while it was measured, and
	// acknowledged how many in all.
	accepted, acknowledged int
	// refused is how many events were answered with 429 or 503.
	refused int
	// late is how many requests of a paced plan were sent more than lateness after
	// their time: then it is the generator that is measured.
	late int
	// latencies are those of the requests that were accepted while it was
	// measured, in ascending order.
	latencies []time.Duration
	// acks are the events that were acknowledged, if these are kept.
	acks []ack
}

// ack is an event that was acknowledged.
type ack struct {
	id             webhook.ID
	sent, answered time.Time // when its request began, and when its answer was read
}

func (m *measurement) add(o measurement) {
	m.accepted += o.accepted
	m.acknowledged += o.acknowledged
	m.refused += o.refused
	m.late += o.late
	m.latencies = append(m.latencies, o.latencies...)
	m.acks = append(m.acks, o.acks...)
}

// warm sends every request until there was a time that all of them were accepted,
// and tells what was acknowledged. After a case at full load ingest may refuse
// some for a moment.
func (l *load) warm(ctx context.Context, requests []request) (warmed measurement, err error) {
	for range warmTries {
		m, err := l.start(ctx, plan{requests: requests, most: len(requests)})
		warmed.add(m)
		if err != nil || m.refused == 0 {
			return warmed, err
		}
		if err := pause(ctx, warmPause); err != nil {
			return warmed, err
		}
	}
	return warmed, fmt.Errorf("ingest still refuses events after %d tries", warmTries)
}

// run sends requests, over and over, for warm and then for measured, and tells
// what was answered in the second of these.
func (l *load) run(ctx context.Context, requests []request, warm, measured time.Duration) (measurement, error) {
	from := time.Now().Add(warm)
	return l.start(ctx, plan{requests: requests, from: from, to: from.Add(measured)})
}

// start sends what is planned, and returns when all of it is answered.
func (l *load) start(ctx context.Context, p plan) (measurement, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		mu    sync.Mutex
		total measurement // guarded by mu
	)
	prepared := make([][]byte, len(p.requests))
	for i, r := range p.requests {
		prepared[i] = l.prepare(r)
	}
	take := func() (text []byte, due time.Time) {
		n := int(next.Add(1)) - 1
		if p.most > 0 && n >= p.most {
			return nil, time.Time{}
		}
		if p.every > 0 {
			due = p.begin.Add(time.Duration(n) * p.every)
		}
		return prepared[n%len(prepared)], due
	}
	connections := l.connections
	if p.most > 0 {
		connections = min(connections, p.most)
	}
	for range connections {
		wg.Go(func() {
			m, err := l.work(ctx, take, p.from, p.to)
			if err != nil {
				cancel(err) // one fault ends them all
			}
			mu.Lock()
			defer mu.Unlock()
			total.add(m)
		})
	}
	wg.Wait()
	slices.Sort(total.latencies)
	return total, context.Cause(ctx)
}

func (l *load) prepare(r request) []byte {
	return append(fmt.Appendf(nil,
		"POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		r.path, l.address, l.key, len(r.body)), r.body...)
}

// work is one connection.
func (l *load) work(ctx context.Context, take func() (text []byte, due time.Time), from, to time.Time) (m measurement, err error) {
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
		text, due := take()
		if text == nil {
			return m, nil
		}
		if !due.IsZero() {
			if err := pause(ctx, time.Until(due)); err != nil {
				return m, err
			}
			if time.Since(due) > lateness {
				m.late++
			}
		}
		begun := time.Now()
		a, err := l.exchange(conn, reader, text)
		if err != nil {
			if ctx.Err() != nil {
				return m, context.Cause(ctx)
			}
			return m, err
		}
		now := time.Now()
		m.acknowledged += a.accepted
		m.refused += a.refused
		for _, id := range a.ids {
			m.acks = append(m.acks, ack{id, begun, now})
		}
		if !now.Before(from) && (to.IsZero() || !now.After(to)) && a.accepted > 0 {
			m.accepted += a.accepted
			m.latencies = append(m.latencies, now.Sub(begun))
		}
		if a.refused > 0 && a.accepted == 0 {
			if err := pause(ctx, refusedPause); err != nil {
				return m, err
			}
		}
	}
	return m, nil
}

// answer is what one request's events were answered with.
type answer struct {
	accepted, refused int
	ids               []webhook.ID // of those accepted, if they are kept
}

var (
	acceptedItem = []byte(`"status":202`)
	limitedItem  = []byte(`"status":429`)
	awayItem     = []byte(`"status":503`)
	idField      = []byte(`"id":"`)
)

// exchange sends a request and reads its answer. Anything but acceptance and
// refusal for now is an error: then it is not the acceptance that is measured.
func (l *load) exchange(conn net.Conn, reader *bufio.Reader, text []byte) (answer, error) {
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
	var a answer
	switch response.StatusCode {
	case http.StatusAccepted:
		a.accepted = 1
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		a.refused = 1
	case http.StatusOK: // of a batch
		a.accepted = bytes.Count(body, acceptedItem)
		a.refused = bytes.Count(body, limitedItem) + bytes.Count(body, awayItem)
	}
	if a.accepted+a.refused == 0 {
		return a, fmt.Errorf("ingest answered %s: %s", response.Status, printable(body))
	}
	if l.keep && a.accepted > 0 {
		if a.ids = eventIDs(body); len(a.ids) != a.accepted {
			return a, fmt.Errorf("ingest accepted %d events and named %d: %s", a.accepted, len(a.ids), printable(body))
		}
	}
	return a, nil
}

// eventIDs are the events' ids in an answer. Only events have a field of that
// name there.
func eventIDs(body []byte) (ids []webhook.ID) {
	for {
		_, rest, found := bytes.Cut(body, idField)
		if !found {
			return ids
		}
		if id, err := webhook.ParseID(string(rest[:min(len(rest), textID)])); err == nil {
			ids = append(ids, id)
		}
		body = rest
	}
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
