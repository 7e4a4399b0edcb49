package fairqueue

import (
	"strings"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Schema is the Postgres schema of everything Fairhook owns, River's tables
// included.
const Schema = "fairhook"

// ClientQueue is the one queue that every dispatcher's River client works. No
// job carries it: a job's queue column holds its lane.
const ClientQueue = "fairhook"

const lanePrefix = "wh-"

// Lane is the queue name of a webhook's deliveries.
func Lane(id webhook.ID) string { return lanePrefix + id.String() }

// LaneWebhook is the inverse of Lane; ok is false for a queue that is not a
// lane.
func LaneWebhook(queue string) (id webhook.ID, ok bool) {
	text, found := strings.CutPrefix(queue, lanePrefix)
	if !found {
		return webhook.ID{}, false
	}
	id, err := webhook.ParseID(text)
	return id, err == nil
}
