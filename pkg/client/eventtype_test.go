package client_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"testing"

	"github.com/fairhook/fairhook/pkg/client"
)

func TestEventTypes(t *testing.T) {
	t.Parallel()
	const schema = "{ \"type\":\t\"object\",\n\"title\":\"<é\\u00e9>\" }"
	const shown = `{"name":"order.paid","description":"d","schema":` + schema + `,"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:06Z"}`

	t.Run("ArePutByteForByte", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(http.StatusServiceUnavailable, ``), answer(http.StatusCreated, shown))
		got, err := dial(t, fake).EventTypes().Put(t.Context(), "order.paid", client.EventTypeDeclaration{Description: `"d"`, Schema: json.RawMessage(schema)})
		if err != nil {
			t.Fatal(err)
		}
		if got.Name != "order.paid" || got.Description != "d" || string(got.Schema) != schema || got.UpdatedAt.Second() != 6 {
			t.Errorf("got %+v", got)
		}
		sent := fake.got()
		if len(sent) != 2 || sent[1].method != "PUT" || sent[1].path != "/v1/event-types/order.paid" ||
			string(sent[1].body) != `{"description":"\"d\"","schema":`+schema+`}` {
			t.Errorf("sent %+v", sent)
		}
	})
	t.Run("HaveNoSchemaWhenItIsNull", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(http.StatusOK, `{"name":"a","schema":null}`))
		types := dial(t, fake).EventTypes()
		put, err := types.Put(t.Context(), "a", client.EventTypeDeclaration{})
		if err != nil || put.Schema != nil || string(fake.got()[0].body) != `{"description":"","schema":null}` {
			t.Errorf("put %+v, %v: sent %s", put, err, fake.got()[0].body)
		}
		if got, err := types.Get(t.Context(), "a"); err != nil || got.Schema != nil {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("AreListedPageAfterPage", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t,
			answer(http.StatusOK, `{"data":[{"name":"a","schema":null},{"name":"b","schema":true}],"next_cursor":"next"}`),
			answer(http.StatusOK, `{"data":[{"name":"c","schema":{}}],"next_cursor":null}`))
		var got []string
		for e, err := range dial(t, fake).EventTypes().List(t.Context(), 2) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Name+string(e.Schema))
		}
		if !slices.Equal(got, []string{"a", "btrue", "c{}"}) || fake.got()[0].query != "limit=2" || fake.got()[1].query != "cursor=next&limit=2" {
			t.Errorf("listed %q, asked %+v", got, fake.got())
		}
	})
	t.Run("DeleteIsDoneWhenAnEarlierTryDidIt", func(t *testing.T) {
		t.Parallel()
		notFound := answer(http.StatusNotFound, `{"type":"https://fairhook.dev/problems/not-found"}`)
		if err := dial(t, newFake(t, breakConnection(t), notFound)).EventTypes().Delete(t.Context(), "a"); err != nil {
			t.Errorf("after a lost answer: %v", err)
		}
		if err := dial(t, newFake(t, notFound)).EventTypes().Delete(t.Context(), "a"); !client.IsNotFound(err) {
			t.Errorf("of an unknown type: %v", err)
		}
	})
	t.Run("RefuseWhatCannotBeMeant", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(http.StatusOK, `{}`))
		types := dial(t, fake).EventTypes()
		for _, name := range []string{"", ".", ".."} {
			if _, err := types.Get(t.Context(), name); err == nil {
				t.Errorf("got %q", name)
			}
			if err := types.Delete(t.Context(), name); err == nil {
				t.Errorf("deleted %q", name)
			}
		}
		if _, err := types.Put(t.Context(), "a", client.EventTypeDeclaration{Schema: json.RawMessage(`{`)}); err == nil {
			t.Error("put a broken schema")
		}
		if n := len(fake.got()); n > 0 {
			t.Errorf("made %d requests", n)
		}
		_, _ = types.Get(t.Context(), "a/b?c")
		if path := fake.got()[0].path; path != "/v1/event-types/a%2Fb%3Fc" {
			t.Errorf("asked for %s", path)
		}
	})
}
