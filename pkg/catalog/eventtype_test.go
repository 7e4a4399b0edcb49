package catalog

import (
	"testing"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func (b *bundle) eventType(name string) *EventType {
	b.t.Helper()
	e, err := b.EventType(b.t.Context(), name)
	if err != nil {
		b.t.Fatalf("EventType: %v", err)
	}
	return e
}

func (b *bundle) declare(name, schema string) {
	b.t.Helper()
	b.exec(`INSERT INTO fairhook.event_types (name, description, schema) VALUES ($1, '', nullif($2, ''))
		ON CONFLICT (name) DO UPDATE SET schema = excluded.schema`, name, schema)
}

// accepts reports whether a payload satisfies what is declared of a type.
func (b *bundle) accepts(name, payload string) bool {
	b.t.Helper()
	faults, err := b.eventType(name).Validate(b.t.Context(), []byte(payload))
	if err != nil {
		b.t.Fatalf("Validate: %v", err)
	}
	return len(faults) == 0
}

func TestEventType(t *testing.T) {
	t.Parallel()

	t.Run("KnowsWhatIsDeclared", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		b.declare("plain", "")
		b.declare("strict", `{"type":"string"}`)
		for name, want := range map[string]struct{ declared, schema, accepts bool }{
			"plain":   {declared: true, accepts: true},
			"strict":  {declared: true, schema: true},
			"unknown": {accepts: true},
		} {
			e := b.eventType(name)
			if e.Declared != want.declared || e.HasSchema() != want.schema || b.accepts(name, `1`) != want.accepts {
				t.Errorf("%s is %+v", name, e)
			}
		}
		if !b.accepts("strict", `"a"`) {
			t.Error("a good payload is refused")
		}
	})

	t.Run("IsLoadedAndCompiledOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		b.declare("a", `{}`)
		b.eventually("the declaration has been heard of", func() bool { return count(t, b.metrics.invalidations) == 1 })
		for _, name := range []string{"a", "unknown"} {
			first := b.eventType(name)
			for range 5 {
				if b.eventType(name) != first {
					t.Fatalf("%s was loaded again", name)
				}
			}
		}
		if misses := count(t, b.types.misses); misses != 2 {
			t.Errorf("asked the database %d times", misses)
		}
	})

	t.Run("FollowsChangesMadeElsewhere", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		if !b.accepts("a", `1`) {
			t.Fatal("an unknown type has a schema")
		}
		b.declare("a", `{"type":"string"}`)
		b.eventually("the type is declared", func() bool { return !b.accepts("a", `1`) })
		b.declare("a", `{"type":"integer"}`)
		b.eventually("its schema is another", func() bool { return b.accepts("a", `1`) && !b.accepts("a", `""`) })
		b.exec(`DELETE FROM fairhook.event_types`)
		b.eventually("the type is unknown", func() bool { return !b.eventType("a").Declared })
	})

	t.Run("SeesOwnChangesAtOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t) // nothing listens
		b.eventType("a")
		b.declare("a", "")
		b.InvalidateEventType("a")
		if !b.eventType("a").Declared {
			t.Error("not declared")
		}
	})

	t.Run("FailsWhenItsSchemaDoesNotCompile", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		b.declare("a", `{"type":"no such type"}`) // past the API
		e := b.eventType("a")
		_, err := e.Validate(t.Context(), []byte(`1`))
		if !e.HasSchema() || err == nil || webhook.ErrorCode(err) != "" {
			t.Errorf("got %+v, %v; want an internal error", e, err)
		}
		b.declare("a", `{"type":"null"}`)
		b.eventually("it is mended", func() bool { e := b.eventType("a"); return e.broken == nil && b.accepts("a", `null`) })
	})

	t.Run("IsBoundedInMemory", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.MaxEventTypeBytes = 20_000 }).start()
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
			b.declare(name, `{"type":"string"}`)
		}
		b.eventually("the declarations have been heard of", func() bool { return count(t, b.metrics.invalidations) == 8 })
		for range 3 {
			for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
				if b.accepts(name, `1`) {
					t.Errorf("%s accepts anything", name)
				}
			}
		}
		b.types.cache.CleanUp()
		if n := b.types.cache.EstimatedSize(); n < 1 || n > 5 {
			t.Errorf("%d of 8 types are remembered", n)
		}
	})
}

// It cannot run beside other tests: allocations are counted for the process.
func TestAKnownEventTypeCostsNoAllocation(t *testing.T) {
	b := setup(t).start()
	b.declare("a", `{}`)
	ctx := t.Context()
	for _, name := range []string{"a", "unknown"} {
		b.eventType(name)
		if n := testing.AllocsPerRun(1000, func() { _, _ = b.EventType(ctx, name) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
