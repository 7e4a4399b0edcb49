package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// IdempotencyLife is how long an idempotency key stands for its event.
const IdempotencyLife = 24 * time.Hour

// IdempotencyKey is a producer's name for one submission, unique within its
// tenant for IdempotencyLife.
type IdempotencyKey struct {
	Key string
	// Fingerprint is the SHA-256 of everything that was submitted, by which a
	// repetition is told from another event under the same key.
	Fingerprint [32]byte
}

// NewEvent is an event to be accepted. Its WebhookIDs become its deliveries.
type NewEvent struct {
	webhook.Event
	Key *IdempotencyKey // nil: none
	// Dropped are those of WebhookIDs that a limit keeps from getting the event:
	// each delivery ends at once, as dropped, with its reason on record.
	Dropped []Dropped
}

// Dropped is a delivery that ends before it begins.
type Dropped struct {
	WebhookID webhook.ID
	Reason    webhook.Reason
}

// dropped is the set of webhooks that the event is kept from.
func (e *NewEvent) dropped() map[webhook.ID]bool {
	if len(e.Dropped) == 0 {
		return nil
	}
	set := make(map[webhook.ID]bool, len(e.Dropped))
	for _, d := range e.Dropped {
		set[d.WebhookID] = true
	}
	return set
}

// JobInsert is how deliveries get into the job table, which belongs to package
// fairqueue.
type JobInsert struct {
	// SQL is the statement part that inserts the jobs, given the numbers of two
	// uuid[] parameters of equal length, for use below a CTE named accepted(id,
	// ordering_key).
	SQL func(eventIDs, webhookIDs int) string
	// Channel is where dispatchers listen, and Notifications what to tell them
	// about new deliveries for these webhooks.
	Channel       string
	Notifications func(webhookIDs []webhook.ID) []string
}

// Acceptor stores events together with their deliveries.
type Acceptor struct {
	jobs JobInsert
	sql  string
	// sqlDropping is sql that also records dropped deliveries: rare enough not to
	// be a part of every statement.
	sqlDropping string
}

// NewAcceptor prepares the statements.
func NewAcceptor(jobs JobInsert) *Acceptor {
	accept := `
		WITH claimed AS (
			INSERT INTO fairhook.idempotency_keys AS k (tenant, key, event_id, fingerprint)
			SELECT c.tenant, c.key, c.event_id, c.fingerprint
			FROM unnest($10::text[], $11::text[], $12::uuid[], $13::bytea[]) AS c (tenant, key, event_id, fingerprint)
			ON CONFLICT (tenant, key) DO UPDATE
			SET event_id = excluded.event_id, fingerprint = excluded.fingerprint, created_at = excluded.created_at
			WHERE k.created_at < now() - interval '` + strconv.Itoa(int(IdempotencyLife/time.Second)) + ` seconds'
			RETURNING k.event_id
		), accepted AS (
			INSERT INTO fairhook.events (id, tenant, type, payload, content_type, occurred_at, metadata, webhook_ids, ordering_key)
			SELECT e.id, e.tenant, e.type, e.payload, e.content_type, e.occurred_at, e.metadata::jsonb, e.webhook_ids::uuid[], e.ordering_key
			FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::timestamptz[], $7::text[], $8::text[], $9::boolean[],
				$16::text[])
				AS e (id, tenant, type, payload, content_type, occurred_at, metadata, webhook_ids, keyed, ordering_key)
			WHERE NOT e.keyed OR e.id IN (SELECT event_id FROM claimed)
			ON CONFLICT DO NOTHING
			RETURNING id, ordering_key
		), jobs AS (
			` + jobs.SQL(14, 15) + `
		)`
	return &Acceptor{
		jobs: jobs,
		sql: accept + `
		SELECT id FROM accepted`,
		sqlDropping: accept + `, dropped AS (
			INSERT INTO fairhook.attempts (event_id, id, webhook_id, tenant, started_at, number, reason, status, instance)
			SELECT d.event_id, d.id, d.webhook_id, d.tenant, now(), 0, d.reason, '` + string(webhook.StatusDropped) + `', '` + string(webhook.RoleIngest) + `'
			FROM unnest($17::uuid[], $18::uuid[], $19::uuid[], $20::text[], $21::text[]) AS d (event_id, id, webhook_id, tenant, reason)
			WHERE d.event_id IN (SELECT id FROM accepted)
		)
		SELECT id FROM accepted`,
	}
}

// Accept claims idempotency keys, inserts events and their deliveries, and
// notifies the dispatchers: one implicit transaction in one round trip. It
// returns the ids of the events that it inserted once they are committed. An
// event is left out, with its deliveries, when its id is stored already, so that
// the same events can be given again after an error that does not say whether
// they were committed; or when its key stands for another event (StoredKeys
// tells which).
//
// An error means that the transaction did not commit if it is a
// *pgconn.PgError of severity ERROR or one that pgconn.SafeToRetry vouches for,
// and says nothing about it otherwise.
//
// Two events of one call must not share a key. keyWait bounds the wait for a key
// that an open transaction elsewhere holds; when it is over the whole call fails
// with SQLSTATE 55P03 (lock_not_available).
func (a *Acceptor) Accept(ctx context.Context, q Querier, events []*NewEvent, keyWait time.Duration) ([]webhook.ID, error) {
	p := newAcceptParams(events)
	batch := &pgx.Batch{}
	if len(p.claims) > 0 {
		// SET LOCAL would warn: the transaction is implicit.
		batch.Queue(`SELECT set_config('lock_timeout', $1, true)`, strconv.FormatInt(max(1, keyWait.Milliseconds()), 10))
	}
	claims := p.sortedClaims()
	args := []any{
		p.ids, p.tenants, p.types, p.payloads, p.contentTypes, p.occurredAt, p.metadata, p.webhookIDs, p.keyed,
		claims.tenants, claims.keys, claims.eventIDs, claims.fingerprints,
		p.deliveryEvents, p.deliveryWebhooks, p.orderingKeys,
	}
	sql := a.sql
	if d := &p.dropped; len(d.ids) > 0 {
		sql, args = a.sqlDropping, append(args, d.eventIDs, d.ids, d.webhookIDs, d.tenants, d.reasons)
	}
	batch.Queue(sql, args...)
	if payloads := a.jobs.Notifications(p.deliveryWebhooks); len(payloads) > 0 {
		batch.Queue(`SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS n (payload)`, a.jobs.Channel, payloads)
	}
	if len(p.claims) > 0 {
		// A commit with notifications waits for its turn among all of the server's:
		// that is no key held elsewhere.
		batch.Queue(`SELECT set_config('lock_timeout', '0', true)`)
	}

	results := q.SendBatch(ctx, batch)
	inserted, err := readAccept(results, batch.Len(), len(p.claims) > 0)
	// Closing reads to the end of the transaction: only its success means that
	// the commit happened.
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, fmt.Errorf("accept %d events: %w", len(events), err)
	}
	return inserted, nil
}

func readAccept(results pgx.BatchResults, statements int, keyed bool) ([]webhook.ID, error) {
	if keyed {
		if _, err := results.Exec(); err != nil {
			return nil, err
		}
		statements--
	}
	rows, err := results.Query()
	if err != nil {
		return nil, err
	}
	inserted, err := pgx.CollectRows(rows, pgx.RowTo[webhook.ID])
	if err != nil {
		return nil, err
	}
	for range statements - 1 {
		if _, err := results.Exec(); err != nil {
			return nil, err
		}
	}
	return inserted, nil
}

// acceptParams is a batch in columns, the form in which one statement takes any
// number of rows.
type acceptParams struct {
	ids          []webhook.ID
	tenants      []string
	types        []string
	payloads     [][]byte
	contentTypes []*string
	occurredAt   []*time.Time
	metadata     []*string
	webhookIDs   []string // as array literals: unnest flattens arrays of arrays
	keyed        []bool
	orderingKeys []*string
	claims       []*NewEvent

	deliveryEvents, deliveryWebhooks []webhook.ID
	dropped                          droppedColumns
}

type droppedColumns struct {
	eventIDs, ids, webhookIDs []webhook.ID
	tenants                   []string
	reasons                   []webhook.Reason
}

func (c *droppedColumns) add(e *NewEvent) {
	for _, d := range e.Dropped {
		c.eventIDs = append(c.eventIDs, e.ID)
		c.ids = append(c.ids, webhook.NewID(e.CreatedAt()))
		c.webhookIDs = append(c.webhookIDs, d.WebhookID)
		c.tenants = append(c.tenants, e.Tenant)
		c.reasons = append(c.reasons, d.Reason)
	}
}

func newAcceptParams(events []*NewEvent) *acceptParams {
	deliveries := 0
	for _, e := range events {
		deliveries += len(e.WebhookIDs)
	}
	n := len(events)
	p := &acceptParams{
		ids:              make([]webhook.ID, 0, n),
		tenants:          make([]string, 0, n),
		types:            make([]string, 0, n),
		payloads:         make([][]byte, 0, n),
		contentTypes:     make([]*string, 0, n),
		occurredAt:       make([]*time.Time, 0, n),
		metadata:         make([]*string, 0, n),
		webhookIDs:       make([]string, 0, n),
		keyed:            make([]bool, 0, n),
		orderingKeys:     make([]*string, n),
		deliveryEvents:   make([]webhook.ID, 0, deliveries),
		deliveryWebhooks: make([]webhook.ID, 0, deliveries),
	}
	for i, e := range events {
		p.ids = append(p.ids, e.ID)
		if e.OrderingKey != "" {
			p.orderingKeys[i] = &e.OrderingKey
		}
		p.tenants = append(p.tenants, e.Tenant)
		p.types = append(p.types, e.Type)
		payload := e.Payload
		if payload == nil {
			payload = []byte{} // nil would be NULL
		}
		p.payloads = append(p.payloads, payload)
		var contentType *string
		if e.ContentType != "" && e.ContentType != webhook.ContentTypeJSON {
			contentType = &e.ContentType
		}
		p.contentTypes = append(p.contentTypes, contentType)
		p.occurredAt = append(p.occurredAt, e.OccurredAt)
		p.metadata = append(p.metadata, metadataJSON(e.Metadata))
		p.webhookIDs = append(p.webhookIDs, uuidArray(e.WebhookIDs))
		p.keyed = append(p.keyed, e.Key != nil)
		if e.Key != nil {
			p.claims = append(p.claims, e)
		}
		p.dropped.add(e)
		dropped := e.dropped()
		for _, id := range e.WebhookIDs {
			if dropped[id] {
				continue
			}
			p.deliveryEvents = append(p.deliveryEvents, e.ID)
			p.deliveryWebhooks = append(p.deliveryWebhooks, id)
		}
	}
	return p
}

type claimColumns struct {
	tenants, keys []string
	eventIDs      []webhook.ID
	fingerprints  [][]byte
}

// sortedClaims is the keys to claim in one order that all processes share, so
// that two transactions that want the same keys never wait for each other.
func (p *acceptParams) sortedClaims() claimColumns {
	slices.SortFunc(p.claims, func(a, b *NewEvent) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Key.Key, b.Key.Key))
	})
	c := claimColumns{
		tenants:      make([]string, 0, len(p.claims)),
		keys:         make([]string, 0, len(p.claims)),
		eventIDs:     make([]webhook.ID, 0, len(p.claims)),
		fingerprints: make([][]byte, 0, len(p.claims)),
	}
	for _, e := range p.claims {
		c.tenants = append(c.tenants, e.Tenant)
		c.keys = append(c.keys, e.Key.Key)
		c.eventIDs = append(c.eventIDs, e.ID)
		c.fingerprints = append(c.fingerprints, e.Key.Fingerprint[:])
	}
	return c
}

// uuidArray is the text form of a uuid[].
func uuidArray(ids []webhook.ID) string {
	var b strings.Builder
	b.Grow(2 + 37*len(ids))
	b.WriteByte('{')
	for i, id := range ids {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(id.String())
	}
	b.WriteByte('}')
	return b.String()
}

// KeyName names an idempotency key among those of all tenants.
type KeyName struct{ Tenant, Key string }

// StoredKey is what an idempotency key stands for.
type StoredKey struct {
	EventID     webhook.ID
	Fingerprint [32]byte
	// WebhookIDs are the targets of the event, nil when its row is past its
	// retention.
	WebhookIDs []webhook.ID
	// Dropped are those of them that a limit kept from getting the event.
	Dropped []webhook.ID
}

// StoredKeys reads what keys stand for. Keys that stand for nothing, or were used
// longer than IdempotencyLife ago, are missing from the answer.
func StoredKeys(ctx context.Context, q Querier, names []KeyName) (map[KeyName]StoredKey, error) {
	tenants, keys := make([]string, len(names)), make([]string, len(names))
	for i, name := range names {
		tenants[i], keys[i] = name.Tenant, name.Key
	}
	// Planned anew each time: the table grows from empty to millions of rows in a
	// day, and a plan cached on the empty table would read all of it.
	rows, err := q.Query(ctx, `
		SELECT k.tenant, k.key, k.event_id, k.fingerprint
		FROM unnest($1::text[], $2::text[]) AS n (tenant, key)
		JOIN fairhook.idempotency_keys AS k USING (tenant, key)
		WHERE k.created_at >= now() - make_interval(secs => $3)`, pgx.QueryExecModeCacheDescribe, tenants, keys, IdempotencyLife.Seconds())
	if err != nil {
		return nil, fmt.Errorf("look up %d idempotency keys: %w", len(names), err)
	}
	var (
		stored      = make(map[KeyName]StoredKey, len(names))
		eventIDs    []webhook.ID
		name        KeyName
		eventID     webhook.ID
		fingerprint []byte
	)
	_, err = pgx.ForEachRow(rows, []any{&name.Tenant, &name.Key, &eventID, &fingerprint}, func() error {
		s := StoredKey{EventID: eventID}
		copy(s.Fingerprint[:], fingerprint)
		stored[name] = s
		eventIDs = append(eventIDs, eventID)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up %d idempotency keys: %w", len(names), err)
	}
	targets, err := StoredTargets(ctx, q, eventIDs)
	if err != nil {
		return nil, err
	}
	dropped, err := storedDrops(ctx, q, eventIDs)
	if err != nil {
		return nil, err
	}
	for name, s := range stored {
		s.WebhookIDs, s.Dropped = targets[s.EventID], dropped[s.EventID]
		stored[name] = s
	}
	return stored, nil
}

// StoredTargets reads the targets of events by their ids. Events that are not
// stored are missing from the answer.
func StoredTargets(ctx context.Context, q Querier, ids []webhook.ID) (map[webhook.ID][]webhook.ID, error) {
	targets := make(map[webhook.ID][]webhook.ID, len(ids))
	if len(ids) == 0 {
		return targets, nil
	}
	byAge := func(a, b webhook.ID) int { return slices.Compare(a[:], b[:]) }
	// The range beside the list lets Postgres leave out partitions of other days.
	rows, err := q.Query(ctx, `
		SELECT id, webhook_ids FROM fairhook.events WHERE id = ANY ($1) AND id >= $2 AND id <= $3`,
		pgx.QueryExecModeCacheDescribe, ids, slices.MinFunc(ids, byAge), slices.MaxFunc(ids, byAge))
	if err != nil {
		return nil, fmt.Errorf("look up %d events: %w", len(ids), err)
	}
	var (
		id         webhook.ID
		webhookIDs []webhook.ID
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &webhookIDs}, func() error {
		targets[id] = slices.Clone(webhookIDs)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up %d events: %w", len(ids), err)
	}
	return targets, nil
}

// storedDrops reads which webhooks a limit kept from getting events when they were
// accepted.
func storedDrops(ctx context.Context, q Querier, ids []webhook.ID) (map[webhook.ID][]webhook.ID, error) {
	dropped := make(map[webhook.ID][]webhook.ID)
	if len(ids) == 0 {
		return dropped, nil
	}
	byAge := func(a, b webhook.ID) int { return slices.Compare(a[:], b[:]) }
	rows, err := q.Query(ctx, `
		SELECT event_id, webhook_id FROM fairhook.attempts
		WHERE event_id = ANY ($1) AND event_id >= $2 AND event_id <= $3 AND number = 0 AND reason = ANY ($4)
		ORDER BY id`,
		pgx.QueryExecModeCacheDescribe, ids, slices.MinFunc(ids, byAge), slices.MaxFunc(ids, byAge),
		[]string{string(webhook.ReasonAcceptLimited), string(webhook.ReasonBacklogFull)})
	if err != nil {
		return nil, fmt.Errorf("look up what limits kept %d events from: %w", len(ids), err)
	}
	var eventID, webhookID webhook.ID
	_, err = pgx.ForEachRow(rows, []any{&eventID, &webhookID}, func() error {
		dropped[eventID] = append(dropped[eventID], webhookID)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up what limits kept %d events from: %w", len(ids), err)
	}
	return dropped, nil
}

// metadataJSON is the JSON text of metadata, nil where there is none.
func metadataJSON(metadata map[string]string) *string {
	if len(metadata) == 0 {
		return nil
	}
	text, err := json.Marshal(metadata)
	if err != nil {
		panic(err) // strings always encode
	}
	s := string(text)
	return &s
}
