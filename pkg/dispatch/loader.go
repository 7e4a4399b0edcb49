package dispatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	loaderWorkers = 2
	loaderBatch   = 200
	loadTimeout   = 10 * time.Second
)

// errStopped says that the process is on its way out.
var errStopped = errors.New("dispatcher is stopping")

// loaded is the answer for one event: nil and no error if it does not exist.
type loaded struct {
	event *postgres.Message
	err   error
}

// newLoader makes the loader of payloads: one query for all the deliveries that
// start at the same moment. It runs beside the fetch, so that a fetch is never
// held up by payloads.
func newLoader(db postgres.Querier) *batcher[webhook.ID, loaded] {
	return newBatcher(loaderWorkers, loaderBatch, func(ctx context.Context, ids []webhook.ID) []loaded {
		ctx, cancel := context.WithTimeout(ctx, loadTimeout)
		defer cancel()
		answers := make([]loaded, len(ids))
		wanted := slices.Clone(ids)
		slices.SortFunc(wanted, func(a, b webhook.ID) int { return bytes.Compare(a[:], b[:]) })
		wanted = slices.Compact(wanted)
		events, err := postgres.LoadMessages(ctx, db, wanted)
		for i, id := range ids {
			answers[i] = loaded{event: events[id], err: err}
		}
		return answers
	})
}

// load returns an event, or nil if it is past its retention.
func load(ctx context.Context, loader *batcher[webhook.ID, loaded], id webhook.ID) (*postgres.Message, error) {
	answer, err := loader.Do(ctx, id)
	if err == nil {
		err = answer.err
	}
	if err != nil {
		return nil, fmt.Errorf("load event %s: %w", id, err)
	}
	return answer.event, nil
}
