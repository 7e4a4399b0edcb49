package client

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"
)

// Result is what became of one event of a batch: Accepted, or Err, which is as
// Submit's.
type Result struct {
	Accepted *Accepted
	Err      error
}

// SubmitBatch hands several events over and returns a result for each, in their
// order. Fairhook stores those that are sound in one transaction, and refuses
// each of the others alone. It takes 1,000 events of 8 MiB together, unless it is
// configured otherwise.
//
// Every event has an idempotency key, its own or one made up for this call, so a
// batch is tried again as Submit is. So are those of its events whose results say
// that trying again may help; they are stored in a transaction of their own then.
//
// With an error there are no results, and nothing is known of any event unless
// the error is an *Error with a 4xx status: then none was accepted. To settle it,
// submit the events again with the same keys.
func (c *Client) SubmitBatch(ctx context.Context, events []Event) ([]Result, error) {
	if len(events) == 0 {
		return nil, nil
	}
	items := make([]batchItem, len(events))
	for i := range events {
		key := events[i].IdempotencyKey
		if key == "" {
			key = NewIdempotencyKey()
		}
		body, err := events[i].encode(key)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		items[i] = batchItem{index: i, key: key, body: body}
	}
	results := make([]Result, len(events))
	left, asked, err := c.submitItems(ctx, items, results)
	if err != nil {
		return nil, err
	}
	for tries := 0; len(left) > 0 && tries < c.retries.max; tries++ {
		wait, worth := c.retries.pause(ctx, tries, asked)
		if !worth || sleep(ctx, wait) != nil {
			break
		}
		again, askedThen, err := c.submitItems(ctx, left, results)
		if err != nil {
			for _, item := range left {
				results[item.index].Err = err // whether they were accepted is not known now
			}
			break
		}
		left, asked = again, askedThen
	}
	return results, nil
}

// batchItem is one event on its way.
type batchItem struct {
	index int // in the caller's batch
	key   string
	body  []byte
}

// submitItems submits items once, by the rules for a whole request, and sets
// their results. It returns those worth trying again, and the longest wait that
// one of them asks for.
func (c *Client) submitItems(ctx context.Context, items []batchItem, results []Result) (again []batchItem, wait time.Duration, err error) {
	var body bytes.Buffer
	for i, item := range items {
		body.WriteByte("[,"[min(i, 1)])
		body.Write(item.body)
	}
	body.WriteByte(']')
	var answer struct {
		Results []struct {
			Status int `json:"status"`
			Accepted
			Replayed   bool   `json:"idempotency_replayed"`
			RetryAfter int64  `json:"retry_after_seconds"`
			Error      *Error `json:"error"`
		} `json:"results"`
	}
	call := call{
		method: http.MethodPost, path: "/v1/events/batch", body: body.Bytes(),
		header:     http.Header{"Content-Type": {"application/json"}},
		repeatable: true, submission: true,
	}
	got, err := c.do(ctx, call, &answer)
	if err != nil {
		return nil, 0, err
	}
	if len(answer.Results) != len(items) {
		return nil, 0, fmt.Errorf("fairhook: %s %s: %d results for %d events", call.method, call.path, len(answer.Results), len(items))
	}
	for i, item := range items {
		r, result := &answer.Results[i], &results[item.index]
		if r.Status >= 200 && r.Status <= 299 {
			accepted := r.Accepted
			accepted.Replayed, accepted.IdempotencyKey = r.Replayed, item.key
			*result = Result{Accepted: &accepted}
			continue
		}
		e := r.Error
		if e == nil {
			e = &Error{Title: http.StatusText(r.Status)}
		}
		e.Status = r.Status
		if e.RequestID == "" {
			e.RequestID = got.header.Get("X-Request-Id")
		}
		e.RetryAfter = seconds(r.RetryAfter)
		// Pointers begin at the number that the event had in its request.
		for k := range e.Errors {
			e.Errors[k].Pointer = strings.TrimPrefix(e.Errors[k].Pointer, fmt.Sprintf("/%d", i))
		}
		*result = Result{Err: e}
		if passing(r.Status) {
			again = append(again, item)
			wait = max(wait, e.RetryAfter)
		}
	}
	return again, wait, nil
}

// passing reports whether a submission's status may be another one later.
func passing(status int) bool {
	switch status {
	case http.StatusConflict, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true
	}
	return false
}

// pause is how long to wait before trying again, at least what is asked, and
// whether that fits in the call's bounds.
func (r retries) pause(ctx context.Context, tries int, asked time.Duration) (time.Duration, bool) {
	wait := max(backoff(r.waitMin, r.waitMax, tries, nil), asked)
	deadline, bounded := ctx.Deadline()
	return wait, asked <= r.waitMax && (!bounded || time.Until(deadline) > wait)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// seconds is a number of seconds from an answer as a duration, which holds no
// more than some centuries.
func seconds(n int64) time.Duration {
	return time.Duration(min(max(n, 0), math.MaxInt64/int64(time.Second))) * time.Second
}
