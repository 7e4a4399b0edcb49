package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/schema"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// EventType is what has been declared of an event type. It is shared: nobody may
// change it.
type EventType struct {
	// Declared is false for a type that nobody has declared.
	Declared bool
	// schema is what payloads must satisfy; nil: any will do.
	schema *schema.Schema
	// broken says why there is no schema although one is declared.
	broken error
}

// HasSchema reports whether payloads of the type must satisfy a schema.
func (t *EventType) HasSchema() bool { return t.schema != nil || t.broken != nil }

// Validate checks a JSON payload against the type's schema, if it has one, as
// schema.Schema.Validate does. The error is internal, or ctx's.
func (t *EventType) Validate(ctx context.Context, payload []byte) ([]webhook.FieldError, error) {
	switch {
	case t.broken != nil:
		return nil, t.broken
	case t.schema == nil:
		return nil, nil
	}
	return t.schema.Validate(ctx, payload)
}

// EventType returns what has been declared of an event type, with its schema
// compiled. One that nobody has declared is not an error. Errors are those of
// Webhook, without CodeNotFound. A type asked for before costs no round trip and
// no allocation.
func (c *Catalog) EventType(ctx context.Context, name string) (*EventType, error) {
	return c.types.get(ctx, name)
}

// InvalidateEventType forgets an event type, as Invalidate does a webhook.
func (c *Catalog) InvalidateEventType(name string) { c.types.invalidate(name) }

// typeChanged forgets the event type that a notification names.
func (c *Catalog) typeChanged(name string) {
	c.metrics.invalidations.Inc()
	c.InvalidateEventType(name)
}

// loadEventType answers for types that are not declared with a value, not with an
// error: most producers' types are not, and each answer is good until the
// notification that one has been.
func (c *Catalog) loadEventType(ctx context.Context, name string) (*EventType, time.Duration, error) {
	declared, err := postgres.EventType(ctx, c.pool, name)
	switch {
	case webhook.ErrorCode(err) == webhook.CodeNotFound:
		return &EventType{}, 0, nil
	case err != nil:
		return nil, 0, err
	case declared.Schema == nil:
		return &EventType{Declared: true}, 0, nil
	}
	compiled, faults := schema.Compile(declared.Schema)
	if faults != nil {
		// Somebody wrote it past the API, or it passed an earlier version's rules.
		// It is remembered: compiling it again would not help.
		err := fmt.Errorf("compile the schema of event type %s: %s %s", name, faults[0].Pointer, faults[0].Detail)
		return &EventType{Declared: true, broken: err}, 0, nil
	}
	return &EventType{Declared: true, schema: compiled}, 0, nil
}

// eventTypeWeight is roughly how many bytes an event type takes.
func eventTypeWeight(name string, t *EventType) int {
	weight := 384 + len(name)
	if t != nil && t.schema != nil {
		weight += t.schema.Weight()
	}
	return weight
}
