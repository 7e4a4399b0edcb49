package postgres_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestEventTypes(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	put := func(t *testing.T, name, description, schema string) (*webhook.EventType, bool) {
		t.Helper()
		e := &webhook.EventType{Name: name, Description: description}
		if schema != "" {
			e.Schema = json.RawMessage(schema)
		}
		created, err := postgres.PutEventType(t.Context(), db, e)
		if err != nil {
			t.Fatal(err)
		}
		return e, created
	}

	t.Run("AreReadAsTheyWerePut", func(t *testing.T) {
		t.Parallel()
		const schema = "{ \"type\" :\t\"object\",\n\"title\":\"é\\u0000\" }"
		e, created := put(t, "reads.one", "d", schema)
		if !created || e.CreatedAt.IsZero() || !e.CreatedAt.Equal(e.UpdatedAt) {
			t.Errorf("created %t, %+v", created, e)
		}
		got, err := postgres.EventType(t.Context(), db, e.Name)
		if err != nil {
			t.Fatal(err)
		}
		if got.Name != e.Name || got.Description != "d" || string(got.Schema) != schema || !got.UpdatedAt.Equal(e.UpdatedAt) {
			t.Errorf("read %+v, want %+v", got, e)
		}
	})
	t.Run("AreReplaced", func(t *testing.T) {
		t.Parallel()
		first, _ := put(t, "replaced", "d", `{}`)
		same, created := put(t, "replaced", "d", `{}`)
		if created || !same.UpdatedAt.Equal(first.UpdatedAt) {
			t.Errorf("the same again: created %t, updated at %v, want %v", created, same.UpdatedAt, first.UpdatedAt)
		}
		other, created := put(t, "replaced", "", "")
		if created || !other.UpdatedAt.After(first.UpdatedAt) || !other.CreatedAt.Equal(first.CreatedAt) {
			t.Errorf("another: created %t, %+v", created, other)
		}
		got, err := postgres.EventType(t.Context(), db, "replaced")
		if err != nil || got.Schema != nil || got.Description != "" {
			t.Errorf("read %+v, %v", got, err)
		}
	})
	t.Run("AreListedByNameInPages", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		names := []string{"B", "a", "a-b", "a.b", "a_b", "b"} // as their bytes sort
		for _, name := range []string{"b", "a.b", "B", "a_b", "a", "a-b"} {
			if _, err := postgres.PutEventType(t.Context(), db, &webhook.EventType{Name: name}); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for after := ""; ; after = got[len(got)-1] {
			page, err := postgres.EventTypes(t.Context(), db, after, 2)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, e := range page {
				got = append(got, e.Name)
			}
		}
		if !slices.Equal(got, names) {
			t.Errorf("listed %q, want %q", got, names)
		}
	})
	t.Run("AreGoneWhenDeleted", func(t *testing.T) {
		t.Parallel()
		put(t, "deleted", "", "")
		if err := postgres.DeleteEventType(t.Context(), db, "deleted"); err != nil {
			t.Fatal(err)
		}
		_, err := postgres.EventType(t.Context(), db, "deleted")
		for _, err := range []error{err, postgres.DeleteEventType(t.Context(), db, "deleted")} {
			if webhook.ErrorCode(err) != webhook.CodeNotFound {
				t.Errorf("got %v", err)
			}
		}
	})
}
