//go:build unix

package main

import (
	"context"
	"fmt"
	"io"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// orderedBound is how many deliveries a second an ordered webhook must reach.
const orderedBound = 200

// ordered measures how fast the events of one ordered webhook are delivered, and makes
// sure that they come in their order.
func (b *bench) ordered(ctx context.Context, report *benchReport) error {
	for _, o := range []client.Ordering{client.OrderingStrict, client.OrderingKey} {
		c, err := b.orderedCase(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
		b.dev.out.step("%s: %.0f events/s delivered in order", o, c.EventsPerSecond)
		report.Ordered = append(report.Ordered, c)
	}
	return nil
}

// orderedCase submits a number of events at once, in batches one after the other on one
// connection, and waits for the last to come.
func (b *bench) orderedCase(ctx context.Context, o client.Ordering) (c benchOrdered, err error) {
	if err := b.emptyTables(ctx); err != nil {
		return c, err
	}
	created, err := b.createWebhooks(ctx, 1, client.NewWebhook{Tenant: benchTenant, URL: b.sink.url, MaxInFlight: b.cfg.MaxInFlight, Ordering: o})
	if err != nil {
		return c, err
	}
	c = benchOrdered{Ordering: string(o), Keys: 1, Bound: orderedBound}
	if o == client.OrderingKey {
		c.Keys = b.cfg.OrderedKeys
	}
	l := b.newLoad(1)
	// Whoever works the lane owns it by then.
	if _, err := b.warm(ctx, l, created); err != nil {
		return c, err
	}
	m, err := l.start(ctx, plan{
		requests: orderedRequests(created[0], benchPayload(b.cfg.PayloadBytes), b.cfg.OrderedEvents, min(b.cfg.BatchItems, b.cfg.OrderedEvents), c.Keys),
		most:     (b.cfg.OrderedEvents + b.cfg.BatchItems - 1) / b.cfg.BatchItems,
	})
	if err != nil {
		return c, err
	}
	if m.refused > 0 {
		return c, fmt.Errorf("ingest refused %d events, so that nobody knows their order: ask for less with --ordered-events", m.refused)
	}
	if err := b.delivered(ctx, m, created); err != nil {
		return c, err
	}
	arrivals := b.sink.came()
	a, err := settle(m.acks, arrivals)
	if err != nil {
		return c, err
	}
	if err := inOrder(m.acks, arrivals, c.Keys); err != nil {
		return c, err
	}
	c.Events, c.Duplicates = len(m.acks), a.duplicates
	c.EventsPerSecond = float64(c.Events) / a.last.Sub(a.first).Seconds()
	c.OK = c.EventsPerSecond >= orderedBound
	return c, nil
}

// orderedRequests are batches of events together, in which event n has the key n modulo
// keys.
func orderedRequests(hook webhook.ID, payload []byte, events, items, keys int) []request {
	requests := make([]request, 0, (events+items-1)/items)
	for n := 0; n < events; {
		body := []byte{'['}
		for i := 0; i < items && n < events; i++ {
			if i > 0 {
				body = append(body, ',')
			}
			body = fmt.Appendf(body, `{"webhook_id":%q,"type":%q,"ordering_key":"%d","payload":`, hook, benchType, n%keys)
			body = append(append(body, payload...), '}')
			n++
		}
		requests = append(requests, request{"/v1/events/batch", append(body, ']')})
	}
	return requests
}

// inOrder compares the first arrivals with the order in which events were acknowledged:
// that of one key among events that have so many in turn.
func inOrder(acks []ack, arrivals []arrival, keys int) error {
	place := make(map[webhook.ID]int, len(acks))
	for i, a := range acks {
		place[a.id] = i
	}
	came := make(map[webhook.ID]bool, len(acks))
	last := make([]int, keys)
	for i := range last {
		last[i] = -1
	}
	for _, a := range arrivals {
		i, known := place[a.id]
		if !known || came[a.id] {
			continue
		}
		came[a.id] = true
		key := i % keys
		if i < last[key] {
			return fmt.Errorf("event %d came after event %d of the same key", i, last[key])
		}
		last[key] = i
	}
	return nil
}

// benchOrdered is one measurement of an ordered webhook.
type benchOrdered struct {
	Ordering string `json:"ordering"` // strict or key
	Keys     int    `json:"keys"`
	// EventsPerSecond is all events in relation to the time from the first submission
	// to the last arrival, and OK whether it is at least Bound.
	EventsPerSecond float64 `json:"events_per_second"`
	Bound           float64 `json:"bound_per_second"`
	OK              bool    `json:"ok"`
	Events          int     `json:"events"`
	Duplicates      int     `json:"duplicates"`
}

func (r *benchReport) writeOrdered(w io.Writer) error {
	if r.Ordered == nil {
		return nil
	}
	rows := []string{"ordering\tkeys\tdelivered/s\tevents\ttwice\tbound/s\twithin"}
	for _, c := range r.Ordered {
		rows = append(rows, fmt.Sprintf("%s\t%d\t%.0f\t%d\t%d\t%.0f\t%s", c.Ordering, c.Keys, c.EventsPerSecond, c.Events, c.Duplicates,
			c.Bound, map[bool]string{true: "ok", false: "NOT OK"}[c.OK]))
	}
	return writeRows(w, "ordered: one webhook, its events submitted at once", rows...)
}
