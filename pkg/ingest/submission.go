package ingest

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"maps"
	"slices"
	"time"

	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// way is how an event was submitted. It is part of what an idempotency key
// stands for.
type way string

const (
	wayDirect way = "direct" // to one webhook
	wayFanOut way = "fanout" // to a tenant's webhooks
	wayRaw    way = "raw"    // to one webhook, the body being the payload
)

// submission is what a producer asks for.
type submission struct {
	way         way
	webhookID   webhook.ID // of wayDirect and wayRaw
	tenant      string     // of wayFanOut
	eventType   string
	payload     []byte // exactly as sent: a part of the request's body
	contentType string
	occurredAt  *time.Time
	metadata    map[string]string
	orderingKey string // empty: none
	// follows is true for an item of a batch of which another has been admitted: a
	// batch is not divided for reasons that are not its events' own.
	follows bool
}

// submissionFields are the members of a submission.
var submissionFields = []string{"webhook_id", "tenant", "type", "payload", "timestamp", "metadata", "ordering_key"}

// parseSubmission reads the body of POST /v1/events. The error is a
// *webhook.Error that lists all that is wrong.
func parseSubmission(body []byte) (*submission, error) {
	o, err := strictjson.Parse(body, "payload", submissionFields...)
	if err != nil {
		return nil, err
	}
	return readSubmission(o)
}

// readSubmission reads the members of a submission. more are faults that the
// caller found in other members.
func readSubmission(o *strictjson.Object, more ...webhook.FieldError) (*submission, error) {
	sub := &submission{
		way:         wayDirect,
		tenant:      o.String("tenant"),
		eventType:   o.String("type"),
		payload:     o.Raw("payload"),
		contentType: webhook.ContentTypeJSON,
		occurredAt:  o.Time("timestamp"),
		metadata:    o.StringMap("metadata"),
		orderingKey: o.String("ordering_key"),
	}
	webhookID := o.String("webhook_id")

	faults := slices.Clone(o.Faults())
	fault := func(pointer, detail string) {
		// A field of the wrong type has been read as empty: once is enough.
		same := func(f webhook.FieldError) bool { return f.Pointer == pointer }
		if detail != "" && !slices.ContainsFunc(faults, same) {
			faults = append(faults, webhook.FieldError{Pointer: pointer, Detail: detail})
		}
	}
	switch {
	case o.Has("webhook_id") && o.Has("tenant"):
		fault("/webhook_id", "cannot be combined with tenant: give one of them")
		fault("/tenant", "cannot be combined with webhook_id: give one of them")
	case o.Has("webhook_id"):
		id, err := webhook.ParseID(webhookID)
		if err != nil {
			fault("/webhook_id", "must be a webhook's id")
		}
		sub.webhookID = id
	case o.Has("tenant"):
		sub.way = wayFanOut
		fault("/tenant", webhook.CheckTenant(sub.tenant))
	default:
		fault("/webhook_id", "is required, unless there is a tenant")
		fault("/tenant", "is required, unless there is a webhook_id")
	}
	switch {
	case !o.Has("type"):
		fault("/type", "is required")
	default:
		fault("/type", webhook.CheckEventType(sub.eventType))
	}
	if sub.payload == nil {
		fault("/payload", "is required")
	}
	for _, f := range webhook.CheckMetadata("/metadata", sub.metadata) {
		fault(f.Pointer, f.Detail)
	}
	if o.Has("ordering_key") {
		fault("/ordering_key", webhook.CheckOrderingKey(sub.orderingKey))
	}
	for _, f := range more {
		fault(f.Pointer, f.Detail)
	}
	if len(faults) > 0 {
		return nil, &webhook.Error{Code: webhook.CodeInvalid, Message: "The event breaks rules.", Fields: faults}
	}
	return sub, nil
}

// fingerprint is equal for two submissions if and only if they ask for the same.
// Every part is preceded by its length, and every list by its count, so that no
// two submissions look alike.
func (s *submission) fingerprint() [sha256.Size]byte {
	h := sha256.New()
	write(h, string(s.way))
	write(h, string(s.webhookID[:]))
	write(h, s.tenant)
	write(h, s.eventType)
	write(h, s.contentType)
	if s.occurredAt == nil {
		write(h, "")
	} else {
		write(h, s.occurredAt.UTC().Format(time.RFC3339Nano))
	}
	writeLength(h, len(s.metadata))
	for _, key := range slices.Sorted(maps.Keys(s.metadata)) {
		write(h, key)
		write(h, s.metadata[key])
	}
	writeLength(h, len(s.payload))
	h.Write(s.payload)
	if s.orderingKey != "" { // or else it is what a release made of it that knew none
		write(h, s.orderingKey)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func write(h hash.Hash, part string) {
	writeLength(h, len(part))
	h.Write([]byte(part))
}

func writeLength(h hash.Hash, n int) {
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(n))
	h.Write(length[:])
}
