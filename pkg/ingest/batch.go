package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/semaphore"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// maxBatchDeliveries bounds what one batch puts into one transaction, fan-out
	// included.
	maxBatchDeliveries = 50_000
	// batchWait is how long a request waits for others' bodies to go.
	batchWait = time.Second
)

// batchGate bounds what the bodies of batches take of the memory for bodies, so
// that there is some left for single events: a batch's is read when there is room
// for all of it.
type batchGate struct {
	limit int64 // of one body
	room  *semaphore.Weighted
}

// newBatchGate makes a gate for bodies of so many bytes at most, and of so many
// together, of which at least one body must fit.
func newBatchGate(limit, room int64) *batchGate {
	return &batchGate{limit: limit, room: semaphore.NewWeighted(max(limit, room))}
}

// middleware has a request wait for room, or refuses it.
func (g *batchGate) middleware(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		length := c.Request().ContentLength
		if length < 0 || length > g.limit {
			length = g.limit
		}
		ctx, cancel := context.WithTimeout(c.Request().Context(), batchWait)
		defer cancel()
		if err := g.room.Acquire(ctx, length); err != nil {
			return &webhook.Error{
				Code:       webhook.CodeUnavailable,
				Message:    "The service is taking as many batches as it can. Nothing was kept; try again.",
				RetryAfter: batchWait,
			}
		}
		defer g.room.Release(length)
		return next(c)
	}
}

// batchItem is one event of a batch, on its way through the checks.
type batchItem struct {
	sub      *submission
	prepared *prepared
	key      string // of its own
	err      error  // why it is refused
	// replayed is what was answered when it was submitted before, where it would
	// be refused now.
	replayed *intake.Receipt
}

// stored reports whether it is to be stored.
func (i *batchItem) stored() bool { return i.err == nil && i.replayed == nil }

// submitBatch is POST /v1/events/batch. The sound events of a batch are stored in
// one transaction; each of the others is refused alone. The answer is 200 with a
// result for each, in their order, unless nothing is kept for a reason that is
// not the events' own: then it is that problem, as for a single event.
func (s *Server) submitBatch(c echo.Context) error {
	if _, err := api.Query(c); err != nil {
		return err
	}
	body, err := api.ReadBody(c, s.maxBatchBytes)
	if err != nil {
		return err
	}
	key, err := requestKey(c.Request().Header, signedID(c))
	if err != nil {
		return err
	}
	items, err := s.parseBatch(c.Request().Header.Get(echo.HeaderContentType), body)
	if err != nil {
		return err
	}
	defer withdrawBatch(items)
	if err := s.prepareBatch(c, items, key); err != nil {
		return err
	}
	outcomes, err := s.storeBatch(c.Request().Context(), items, key)
	if err != nil {
		return err
	}
	return s.answerBatch(c, items, outcomes)
}

// parseBatch reads the items of a batch: the elements of a JSON array or, where
// the content type says so, the lines of NDJSON that are not blank. Only trouble
// with the batch as a whole is an error; an item's is kept with it.
func (s *Server) parseBatch(contentType string, body []byte) ([]batchItem, error) {
	var items []batchItem
	if isNDJSON(contentType) {
		if bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("[")) {
			// Some of its lines could be read as events, and others not.
			return nil, webhook.Errorf(webhook.CodeMalformed,
				"The body is a JSON array, and the Content-Type says that it is NDJSON: send it as application/json.")
		}
		for line := range bytes.Lines(body) {
			if line = bytes.Trim(line, " \t\r\n"); len(line) == 0 {
				continue
			}
			if len(items) > s.maxBatchItems {
				break
			}
			value, err := strictjson.ParseValue(line)
			if err != nil {
				items = append(items, batchItem{err: err})
				continue
			}
			items = append(items, s.parseItem(value))
		}
	} else {
		values, err := strictjson.ParseElements(body, s.maxBatchItems+1)
		if err != nil {
			return nil, err
		}
		for i, value := range values {
			item := s.parseItem(value)
			item.err = below("/"+strconv.Itoa(i), item.err)
			items = append(items, item)
		}
	}
	switch {
	case len(items) == 0:
		return nil, webhook.Errorf(webhook.CodeInvalid, "The batch has no events.")
	case len(items) > s.maxBatchItems:
		return nil, webhook.Errorf(webhook.CodeTooLarge, "The batch has more events than the limit of %d.", s.maxBatchItems)
	}
	return items, nil
}

func isNDJSON(contentType string) bool {
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && (mediaType == "application/x-ndjson" || mediaType == "application/ndjson")
}

// batchFields are the members of an item of a batch.
var batchFields = append(slices.Clone(submissionFields), "idempotency_key")

// parseItem reads one item of a batch.
func (s *Server) parseItem(value strictjson.Value) batchItem {
	raw := value.Bytes()
	if int64(len(raw)) > s.maxBodyBytes {
		return batchItem{err: webhook.Errorf(webhook.CodeTooLarge, "The event is larger than the limit of %d bytes.", s.maxBodyBytes)}
	}
	if err := s.bounds.Check(raw); err != nil {
		return batchItem{err: err}
	}
	o, err := value.Object("payload", batchFields...)
	if err != nil {
		return batchItem{err: err}
	}
	var more []webhook.FieldError
	key := o.String("idempotency_key")
	if o.Has("idempotency_key") && !isVisibleASCII(key, maxIdempotencyKeyLength) {
		more = append(more, webhook.FieldError{
			Pointer: "/idempotency_key",
			Detail:  fmt.Sprintf("must be 1 to %d visible ASCII characters", maxIdempotencyKeyLength),
		})
	}
	sub, err := readSubmission(o, more...)
	return batchItem{sub: sub, key: key, err: err}
}

// below is an item's error with its pointers below that of the item.
func below(item string, err error) error {
	var own *webhook.Error
	if !errors.As(err, &own) || len(own.Fields) == 0 {
		return err
	}
	moved := *own
	moved.Fields = slices.Clone(own.Fields)
	for i := range moved.Fields {
		if f := &moved.Fields[i]; f.Parameter == "" {
			f.Pointer = item + f.Pointer
		}
	}
	return &moved
}

// withdrawBatch tells the limits of items that were admitted and then not stored.
func withdrawBatch(items []batchItem) {
	for i := range items {
		if p := items[i].prepared; p != nil {
			p.admission.withdraw()
		}
	}
}

// errBatchTooWide is for a batch, and while one is prepared for those of its
// events that were not looked at for that reason.
var errBatchTooWide = webhook.Errorf(webhook.CodeTooLarge,
	"The batch makes more deliveries than the limit of %d: send it in parts.", maxBatchDeliveries)

// prepareBatch makes the checks of single events on each item. key is the
// request's idempotency key. An error is not an item's own.
func (s *Server) prepareBatch(c echo.Context, items []batchItem, key string) error {
	inArray := !isNDJSON(c.Request().Header.Get(echo.HeaderContentType))
	deliveries, admitted := 0, false
	for i := range items {
		item := &items[i]
		switch {
		case item.err != nil:
			continue
		case deliveries > maxBatchDeliveries:
			item.err = errBatchTooWide
			continue
		}
		var err error
		item.sub.follows = admitted
		item.prepared, err = s.prepare(c, item.sub, webhook.FieldError{Pointer: "/type"})
		switch code := webhook.ErrorCode(err); {
		case err == nil:
			admitted = true
			deliveries += len(item.prepared.item.WebhookIDs)
		case code == "" || code == webhook.CodeUnavailable:
			return err // the others would fare no better
		case inArray:
			item.err = below("/"+strconv.Itoa(i), err)
		default:
			item.err = err
		}
	}
	return s.replayBatch(c, items, key, deliveries)
}

// replayBatch has refused items that were accepted before answered as they were.
// Where the whole batch is refused, for making so many deliveries, it looks at
// all items: those that are stored already make none.
func (s *Server) replayBatch(c echo.Context, items []batchItem, key string, deliveries int) error {
	var (
		repeats []*repeat
		of      []*batchItem
		tooWide = deliveries > maxBatchDeliveries
	)
	for i := range items {
		item := &items[i]
		if item.sub == nil || item.err == nil && !tooWide {
			continue
		}
		r := &repeat{sub: item.sub, key: keyOf(item.sub, itemKey(item.key, key, i)), err: item.err}
		if r.err == nil {
			r.err = errBatchTooWide
		}
		repeats, of = append(repeats, r), append(of, item)
	}
	if err := s.replay(c, repeats); err != nil {
		return err
	}
	for i, r := range repeats {
		if r.err != nil && !errors.Is(r.err, intake.ErrKeyTaken) {
			continue
		}
		item := of[i]
		if item.prepared != nil {
			item.prepared.admission.withdraw()
			deliveries -= len(item.prepared.item.WebhookIDs)
		}
		item.prepared, item.err = r.prepared, r.err
		if r.err == nil {
			item.replayed = &r.receipt
		}
	}
	notLookedAt := func(item batchItem) bool { return errors.Is(item.err, errBatchTooWide) }
	if deliveries > maxBatchDeliveries || slices.ContainsFunc(items, notLookedAt) {
		return errBatchTooWide
	}
	return nil
}

// storeBatch stores the sound items in one transaction. It returns what became of
// each, in their order, or an error when nothing of the batch is kept.
func (s *Server) storeBatch(ctx context.Context, items []batchItem, key string) ([]intake.Outcome, error) {
	group := make([]intake.Item, 0, len(items))
	for i := range items {
		item := &items[i]
		if !item.stored() {
			continue
		}
		submitted := item.prepared.item
		submitted.Key = keyOf(item.sub, itemKey(item.key, key, i))
		group = append(group, submitted)
	}
	outcomes, err := s.intake.SubmitGroup(ctx, group)
	if err != nil {
		return nil, err
	}
	settled := 0
	for _, item := range items {
		if item.stored() {
			item.prepared.admission.settle(outcomes[settled].Receipt, outcomes[settled].Err)
			settled++
		}
	}
	// When the whole transaction failed there is one answer to all: try again.
	away := func(o intake.Outcome) bool { return webhook.ErrorCode(o.Err) == webhook.CodeUnavailable }
	if len(outcomes) > 0 && !slices.ContainsFunc(outcomes, func(o intake.Outcome) bool { return !away(o) }) {
		return nil, outcomes[0].Err
	}
	return outcomes, nil
}

// itemKey is the idempotency key of an item: its own or, where the request has
// one, that with the item's number. No key of a producer's looks like that, since
// none has a space in it.
func itemKey(own, request string, number int) string {
	if own != "" || request == "" {
		return own
	}
	return request + " " + strconv.Itoa(number)
}

// batchAnswer is the answer to a batch.
type batchAnswer struct {
	Results []batchResult `json:"results"`
}

// batchResult is what became of one event: what its own request would have been
// answered.
type batchResult struct {
	Status int `json:"status"`
	*acceptedEvent
	// Replayed stands for the header Idempotency-Replayed, and RetryAfter for
	// Retry-After.
	Replayed   bool     `json:"idempotency_replayed,omitempty"`
	Error      *problem `json:"error,omitempty"`
	RetryAfter int64    `json:"retry_after_seconds,omitempty"`
}

func (s *Server) answerBatch(c echo.Context, items []batchItem, outcomes []intake.Outcome) error {
	ctx := c.Request().Context()
	answer := batchAnswer{Results: make([]batchResult, len(items))}
	for i, item := range items {
		result, err := &answer.Results[i], item.err
		var receipt intake.Receipt
		switch {
		case item.replayed != nil:
			receipt = *item.replayed
		case err == nil:
			receipt, err = outcomes[0].Receipt, outcomes[0].Err
			outcomes = outcomes[1:]
		}
		if err == nil {
			event := s.accepted(ctx, item.prepared, receipt)
			result.Status, result.acceptedEvent, result.Replayed = http.StatusAccepted, &event, receipt.Replayed
			continue
		}
		result.Error, _ = problemOf(err) // what is internal was returned by prepareBatch
		result.Error.RequestID = scopeOf(c).requestID
		result.Status = result.Error.Status
		if result.Error.retryAfter > 0 {
			result.RetryAfter = retryAfterSeconds(result.Error.retryAfter)
		}
	}
	return api.WriteJSON(c, http.StatusOK, answer)
}
