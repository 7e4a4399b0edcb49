package fairqueue

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// NotifyChannel is the Postgres channel on which River's clients hear of new
// jobs.
const NotifyChannel = Schema + ".river_insert"

// unfinishedStates is River's bitmask of the job states in which unique_key is
// unique: available, pending, retryable, running and scheduled.
const unfinishedStates = `B'11110001'`

// uniqueConflict is the predicate of River's unique index, as ON CONFLICT and
// the look-up of live jobs must spell it for Postgres to use the index.
const uniqueConflict = `unique_key IS NOT NULL AND unique_states IS NOT NULL
	AND fairhook.river_job_state_in_bitmask(unique_states, state)`

// InsertSQL is the statement part that inserts one job per delivery, for use
// below a CTE named accepted(id, ordering_key) that holds the events inserted by the
// same statement: deliveries of other events are skipped. eventIDs and webhookIDs
// are the numbers of two uuid[] parameters of equal length, one delivery per
// index. The jobs' ids grow in that order.
//
// The columns left out have defaults that River's own insert would write too;
// a contract test compares a row with one made by River. unique_key is the
// event's id followed by the webhook's: River's unique index then keeps a
// delivery from being queued twice while it lives, and finds the live jobs of
// an event.
func InsertSQL(eventIDs, webhookIDs int) string {
	return fmt.Sprintf(`INSERT INTO fairhook.river_job (args, kind, max_attempts, priority, queue, tags, unique_key, unique_states)
SELECT CASE WHEN a.ordering_key IS NULL THEN jsonb_build_object('event_id', d.event_id, 'webhook_id', d.webhook_id)
            ELSE jsonb_build_object('event_id', d.event_id, 'webhook_id', d.webhook_id, 'ordering_key', a.ordering_key) END,
       '%s', %d,
       `+placeOf(`(SELECT w.ordering FROM fairhook.webhooks w WHERE w.id = d.webhook_id AND w.ordering <> 'none')`, `a.ordering_key IS NOT NULL`)+`,
       '%s' || d.webhook_id, '{}',
       uuid_send(d.event_id) || uuid_send(d.webhook_id), %s
FROM unnest($%d::uuid[], $%d::uuid[]) WITH ORDINALITY AS d (event_id, webhook_id, n)
JOIN accepted a ON a.id = d.event_id
ORDER BY d.n
ON CONFLICT (unique_key) WHERE %s DO NOTHING`,
		job.KindDelivery, job.MaxAttempts, lanePrefix, unfinishedStates, eventIDs, webhookIDs, uniqueConflict)
}

// notification is what travels on NotifyChannel. River reads queue and wakes
// the producer of that queue; lanes is ours, and names the lanes that have
// something new. A notification without lanes means: look for yourself.
type notification struct {
	Queue string `json:"queue"`
	Lanes string `json:"l,omitempty"`
}

// encodedLane is how many bytes one lane takes in a notification.
const encodedLane = 22

// lanesPerNotification keeps a payload under Postgres' limit of 8,000 bytes.
const lanesPerNotification = 340

// maxNotifications bounds what one batch may send; more lanes than fit into
// them are announced as "look for yourself".
const maxNotifications = 4

// Notifications is the payloads to pg_notify on NotifyChannel, in the
// transaction that inserts deliveries for these webhooks or right after it.
// Repeated ids are sent once. A lost notification delays a delivery until the
// dispatchers' next discovery, and loses nothing.
func Notifications(ids []webhook.ID) []string {
	seen := make(map[webhook.ID]struct{}, len(ids))
	unique := make([]webhook.ID, 0, len(ids))
	for _, id := range ids {
		if _, ok := seen[id]; !ok {
			seen[id] = struct{}{}
			unique = append(unique, id)
		}
	}
	switch {
	case len(unique) == 0:
		return nil
	case len(unique) > maxNotifications*lanesPerNotification:
		return []string{encodeNotification(notification{Queue: ClientQueue})}
	}
	var payloads []string
	for len(unique) > 0 {
		n := min(len(unique), lanesPerNotification)
		var lanes strings.Builder
		for _, id := range unique[:n] {
			lanes.WriteString(base64.RawURLEncoding.EncodeToString(id[:]))
		}
		payloads = append(payloads, encodeNotification(notification{ClientQueue, lanes.String()}))
		unique = unique[n:]
	}
	return payloads
}

func encodeNotification(n notification) string {
	text, err := json.Marshal(n)
	if err != nil {
		panic(err) // two strings always encode
	}
	return string(text)
}

// parseNotification reads a payload of NotifyChannel. ours is false for one
// that another use of River on this schema sent; ids is empty for "look for
// yourself".
func parseNotification(payload string) (ids []webhook.ID, ours bool) {
	var n notification
	if err := json.Unmarshal([]byte(payload), &n); err != nil || n.Queue != ClientQueue {
		return nil, false
	}
	for text := n.Lanes; len(text) >= encodedLane; text = text[encodedLane:] {
		var id webhook.ID
		if _, err := base64.RawURLEncoding.Decode(id[:], []byte(text[:encodedLane])); err != nil {
			return nil, true
		}
		ids = append(ids, id)
	}
	return ids, true
}

// JobInsert is how deliveries get into the job table, for package postgres.
func JobInsert() postgres.JobInsert {
	return postgres.JobInsert{SQL: InsertSQL, Channel: NotifyChannel, Notifications: Notifications}
}
