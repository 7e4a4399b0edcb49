package ingest

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// madeKey is an API key as its maker sees it.
type madeKey struct {
	ID            webhook.ID `json:"id"`
	Text          string     `json:"key"`
	SigningSecret string     `json:"signing_secret"`
}

// newKey makes an API key. tenant is empty for all; more are further members.
func newKey(t testing.TB, b *testBundle, tenant, more string, scopes ...webhook.Scope) madeKey {
	t.Helper()
	shown, err := json.Marshal(scopes)
	if err != nil {
		t.Fatal(err)
	}
	whose := `null`
	if tenant != "" {
		whose = `"` + tenant + `"`
	}
	k, _ := want[madeKey](t, b, http.StatusCreated, "POST", "/v1/keys", `{"tenant":`+whose+`,"scopes":`+string(shown)+more+`}`)
	return k
}

// with is the header that makes a request with a key.
func (k *madeKey) with(header ...string) []string {
	return append([]string{"Authorization", "Bearer " + k.Text}, header...)
}

// things are one of each kind, all of one tenant, to be put into paths.
type things struct {
	webhook, event, key webhook.ID
}

func newThings(t *testing.T, b *testBundle, tenant string) things {
	t.Helper()
	w := newWebhook(t, b, tenant, "")
	event, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`))
	return things{w.ID, event.ID, newKey(t, b, tenant, `,"require_signature":true`, webhook.ScopeRead).ID}
}

// path is a route's pattern with the ids of things.
func (th things) path(pattern string) string {
	id := map[string]webhook.ID{"webhooks": th.webhook, "events": th.event, "keys": th.key}[strings.Split(pattern, "/")[2]]
	path := strings.NewReplacer(":id", id.String(), ":name", "some.type", ":test", id.String()).Replace(pattern)
	if strings.HasSuffix(pattern, "/webhooks/:id/events") {
		path += "?type=a"
	}
	return path
}

func TestARuleForEveryRouteAndNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	unruled := map[string]bool{}
	for _, route := range b.server.echo.Routes() {
		if needsKey(route.Path) {
			unruled[route.Method+" "+route.Path] = true
		}
	}
	for route := range rules {
		if !unruled[route] {
			t.Errorf("there is a rule for %s, which is no route", route)
		}
		delete(unruled, route)
	}
	for route := range unruled {
		t.Errorf("%s has no rule", route)
	}
}

func TestScopes(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("DecideWhichRoutesAKeyMayCall", func(t *testing.T) {
		t.Parallel()
		keys := map[webhook.Scope]madeKey{}
		for _, scope := range webhook.Scopes() {
			keys[scope] = newKey(t, b, "", "", scope)
		}
		for route, asked := range rules {
			method, pattern, _ := strings.Cut(route, " ")
			for scope, key := range keys {
				// Nothing there is: what is asked first is the scope.
				a := b.request(t, method, things{}.path(pattern), "", key.with()...)
				if allowed := scope == asked.scope || scope == webhook.ScopeAdmin; allowed && a.status == http.StatusForbidden {
					t.Errorf("%s refuses a key with %s: %s", route, scope, a.body)
				} else if !allowed {
					p := a.problem(t, http.StatusForbidden, "forbidden")
					if want := `The API key does not have the scope "` + string(asked.scope) + `".`; p.Detail != want {
						t.Errorf("%s says %q to a key with %s, want %q", route, p.Detail, scope, want)
					}
				}
			}
		}
	})
	t.Run("AddUp", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "", "", webhook.ScopeRead, webhook.ScopeSubmit)
		want[any](t, b, http.StatusOK, "GET", "/v1/webhooks", "", key.with()...)
		want[any](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(`"tenant":"adds"`, `1`), key.with()...)
		refused(t, b, http.StatusForbidden, "forbidden", "POST", "/v1/webhooks", `{}`, key.with()...)
	})
	t.Run("SayNothingAboutRoutesThatDoNotExist", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "acme", "", webhook.ScopeRead)
		refused(t, b, http.StatusNotFound, "not-found", "GET", "/v1/nothing", "", key.with()...)
		refused(t, b, http.StatusMethodNotAllowed, "method-not-allowed", "PUT", "/v1/webhooks", "", key.with()...)
	})
	t.Run("ARouteWithoutARuleIsForAdminsOfAllTenants", func(t *testing.T) {
		t.Parallel()
		all, one := webhook.Principal{Scopes: webhook.Scopes()}, webhook.Principal{Scopes: webhook.Scopes(), Tenant: new("acme")}
		narrow := webhook.Principal{Scopes: []webhook.Scope{webhook.ScopeSubmit, webhook.ScopeRead, webhook.ScopeManage}}
		const route = "GET /v1/forgotten"
		if permit(&all, route) != nil || permit(&one, route) == nil || permit(&narrow, route) == nil {
			t.Error("it is not")
		}
	})
}

// foreign says what a route answers to a key of another tenant, with every scope.
// body may speak of the tenant acme and of $, its webhook.
var foreign = map[string]struct {
	body   string
	status int
}{
	"POST /v1/events":              {`{"tenant":"acme","type":"a","payload":1}`, http.StatusForbidden},
	"POST /v1/events ":             {`{"webhook_id":"$","type":"a","payload":1}`, http.StatusNotFound},
	"POST /v1/events/batch":        {`[{"tenant":"acme","type":"a","payload":1},{"webhook_id":"$","type":"a","payload":1}]`, http.StatusOK}, // looked into below
	"POST /v1/webhooks/:id/events": {`x`, http.StatusNotFound},
	"GET /v1/events/:id":           {``, http.StatusNotFound},
	"GET /v1/events/:id/attempts":  {``, http.StatusNotFound},
	"GET /v1/events/:id/explain":   {``, http.StatusNotFound},
	"GET /v1/events":               {``, http.StatusOK}, // looked into below
	"GET /v1/deliveries":           {``, http.StatusOK}, // looked into below
	"POST /v1/webhooks":            {`{"tenant":"acme","url":"http://127.0.0.1/"}`, http.StatusForbidden},
	"GET /v1/webhooks":             {``, http.StatusOK}, // looked into below
	"GET /v1/webhooks/:id":         {``, http.StatusNotFound},
	"PATCH /v1/webhooks/:id":       {`{"description":"foreign"}`, http.StatusNotFound},
	"DELETE /v1/webhooks/:id":      {``, http.StatusNotFound},
	"POST /v1/webhooks/:id/pause":  {``, http.StatusNotFound},
	"POST /v1/webhooks/:id/resume": {``, http.StatusNotFound},
	"GET /v1/webhooks/:id/secrets": {``, http.StatusNotFound},

	"GET /v1/webhooks/:id/deliveries":            {``, http.StatusNotFound},
	"GET /v1/webhooks/:id/stats":                 {``, http.StatusNotFound},
	"POST /v1/webhooks/:id/secrets":              {`{}`, http.StatusNotFound},
	"DELETE /v1/webhooks/:id/secrets/:secret_id": {``, http.StatusNotFound},

	"POST /v1/keys":                    {`{"tenant":"acme","scopes":["read"]}`, http.StatusForbidden},
	"POST /v1/keys ":                   {`{"tenant":null,"scopes":["read"]}`, http.StatusForbidden},
	"GET /v1/keys":                     {``, http.StatusOK}, // looked into below
	"GET /v1/keys/:id":                 {``, http.StatusNotFound},
	"DELETE /v1/keys/:id":              {``, http.StatusNotFound},
	"POST /v1/keys/:id/secrets":        {`{}`, http.StatusNotFound},
	"POST /v1/webhooks/:id/test":       {``, http.StatusNotFound},
	"GET /v1/webhooks/:id/tests/:test": {``, http.StatusNotFound},
	// Event types belong to no tenant: all may see them, and none changes them.
	"GET /v1/event-types":          {``, http.StatusOK},
	"GET /v1/event-types/:name":    {``, http.StatusOK},
	"PUT /v1/event-types/:name":    {`{}`, http.StatusForbidden},
	"DELETE /v1/event-types/:name": {``, http.StatusForbidden},
	// What runs is everybody's business, and so nobody's of one tenant.
	"GET /v1/instances": {``, http.StatusForbidden},
}

func TestTenancy(t *testing.T) {
	t.Parallel()

	t.Run("EveryRouteKeepsForeignKeysOut", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		acme := newThings(t, b, "acme")
		key := newKey(t, b, "other", "", webhook.Scopes()...)
		want[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/some.type", `{}`)
		before := dump(t, b)

		tried := map[string]bool{}
		for route, tt := range foreign {
			method, pattern, _ := strings.Cut(strings.TrimSpace(route), " ")
			tried[method+" "+pattern] = true
			a := b.request(t, method, acme.path(pattern), strings.ReplaceAll(tt.body, "$", acme.webhook.String()), key.with()...)
			if a.status != tt.status {
				t.Errorf("%s answers %d %s, want %d", route, a.status, a.body, tt.status)
			}
			if tt.status != http.StatusNotFound || tt.body == "" && method != "GET" {
				continue
			}
			// What is another's is no different from what does not exist.
			nothing := things{webhook.NewID(time.Now()), webhook.NewID(time.Now()), webhook.NewID(time.Now())}
			missing := b.request(t, method, nothing.path(pattern), strings.ReplaceAll(tt.body, "$", nothing.webhook.String()), key.with()...)
			var seen, unseen problemAnswer
			a.decode(t, &seen)
			missing.decode(t, &unseen)
			detail := strings.NewReplacer(
				acme.webhook.String(), nothing.webhook.String(), acme.event.String(), nothing.event.String(), acme.key.String(), nothing.key.String(),
			).Replace(seen.Detail)
			if unseen.Type != seen.Type || unseen.Detail != detail {
				t.Errorf("%s says %q, and %q where there is nothing", route, seen.Detail, unseen.Detail)
			}
		}
		for _, route := range b.server.echo.Routes() {
			if needsKey(route.Path) && !tried[route.Method+" "+route.Path] {
				t.Errorf("%s %s is not in the table: say what it answers to another tenant's key", route.Method, route.Path)
			}
		}
		if after := dump(t, b); after != before {
			t.Errorf("something has changed from\n%s\nto\n%s", before, after)
		}

		batch, _ := want[struct {
			Results []struct{ Status int }
		}](t, b, http.StatusOK, "POST", "/v1/events/batch",
			strings.ReplaceAll(foreign["POST /v1/events/batch"].body, "$", acme.webhook.String()), key.with()...)
		if len(batch.Results) != 2 || batch.Results[0].Status != http.StatusForbidden || batch.Results[1].Status != http.StatusNotFound {
			t.Errorf("a batch gets %+v", batch)
		}
		for _, list := range []string{
			"/v1/webhooks", "/v1/webhooks?tenant=acme", "/v1/keys?tenant=acme", "/v1/deliveries?tenant=acme",
			"/v1/events", "/v1/events?tenant=acme", "/v1/events?webhook_id=" + acme.webhook.String(),
		} {
			if a := b.request(t, "GET", list, "", key.with()...); !strings.HasPrefix(string(a.body), `{"data":[],`) {
				t.Errorf("%s shows %s", list, a.body)
			}
		}
		keys, _ := want[struct{ Data []webhook.Key }](t, b, http.StatusOK, "GET", "/v1/keys", "", key.with()...)
		if len(keys.Data) != 1 || keys.Data[0].ID != key.ID {
			t.Errorf("/v1/keys shows %+v", keys)
		}
	})
	t.Run("AKeyOfATenantDoesEverythingForIt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		key := newKey(t, b, "acme", "", webhook.ScopeAdmin)
		w, _ := want[webhook.Webhook](t, b, http.StatusCreated, "POST", "/v1/webhooks", `{"tenant":"acme","url":"http://127.0.0.1:1/"}`, key.with()...)
		path := "/v1/webhooks/" + w.ID.String()
		for _, call := range []struct {
			method, path, body string
			status             int
		}{
			{"GET", path, ``, http.StatusOK},
			{"GET", "/v1/webhooks?tenant=acme", ``, http.StatusOK},
			{"PATCH", path, `{"description":"mine"}`, http.StatusOK},
			{"POST", path + "/pause", ``, http.StatusOK},
			{"POST", path + "/resume", ``, http.StatusOK},
			{"GET", path + "/secrets", ``, http.StatusOK},
			{"POST", path + "/secrets", `{}`, http.StatusCreated},
			{"POST", path + "/events?type=a", `x`, http.StatusAccepted},
			{"POST", "/v1/events", `{"tenant":"acme","type":"a","payload":1}`, http.StatusAccepted},
			{"POST", "/v1/keys", `{"tenant":"acme","scopes":["admin"]}`, http.StatusCreated},
		} {
			if a := b.request(t, call.method, call.path, call.body, key.with()...); a.status != call.status {
				t.Errorf("%s %s answers %d %s", call.method, call.path, a.status, a.body)
			}
		}
		event, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`), key.with()...)
		want[any](t, b, http.StatusOK, "GET", "/v1/events/"+event.ID.String(), "", key.with()...)
		want[any](t, b, http.StatusOK, "GET", "/v1/events/"+event.ID.String()+"/attempts", "", key.with()...)
		want[any](t, b, http.StatusOK, "GET", "/v1/events/"+event.ID.String()+"/explain", "", key.with()...)
		want[any](t, b, http.StatusOK, "GET", path+"/deliveries?status=pending", "", key.with()...)
		want[any](t, b, http.StatusOK, "GET", path+"/stats", "", key.with()...)
		list, _ := want[struct{ Data []webhook.EventSummary }](t, b, http.StatusOK, "GET", "/v1/events", "", key.with()...)
		if len(list.Data) != 3 || list.Data[0].ID != event.ID {
			t.Errorf("/v1/events shows %+v", list)
		}
		want[any](t, b, http.StatusNoContent, "DELETE", path, "", key.with()...)
		want[any](t, b, http.StatusNoContent, "DELETE", "/v1/keys/"+key.ID.String(), "", key.with()...)
		refused(t, b, http.StatusUnauthorized, "unauthorized", "GET", "/v1/webhooks", "", key.with()...)
	})
}

// dump is all that requests could have changed.
func dump(t *testing.T, b *testBundle) string {
	t.Helper()
	var all string
	err := b.db.QueryRow(t.Context(), `
		SELECT concat_ws(E'\n',
			(SELECT string_agg(to_jsonb(w)::text, ' ' ORDER BY id) FROM fairhook.webhooks w),
			(SELECT string_agg(id::text || coalesce(expires_at::text, ''), ' ' ORDER BY id) FROM fairhook.webhook_secrets),
			(SELECT string_agg(id::text, ' ' ORDER BY id) FROM fairhook.events),
			(SELECT count(*) FROM fairhook.river_job),
			(SELECT string_agg((to_jsonb(e) - 'updated_at')::text, ' ' ORDER BY name) FROM fairhook.event_types e),
			(SELECT string_agg((to_jsonb(k) - 'last_used_at')::text, ' ' ORDER BY id) FROM fairhook.api_keys k),
			(SELECT string_agg(id::text || coalesce(expires_at::text, ''), ' ' ORDER BY id) FROM fairhook.api_key_secrets))`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestKeysEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := setupWith(t, options{pool: b.db}) // without a key of its own

	t.Run("OnEveryCopyWhenRevoked", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "acme", "", webhook.ScopeRead)
		for _, copy := range []*testBundle{b, other} {
			want[any](t, copy, http.StatusOK, "GET", "/v1/webhooks", "", key.with()...)
		}
		want[any](t, b, http.StatusNoContent, "DELETE", "/v1/keys/"+key.ID.String(), "")
		p, _ := refused(t, b, http.StatusUnauthorized, "unauthorized", "GET", "/v1/webhooks", "", key.with()...) // at once here
		if p.Detail != "The API key has been revoked." {
			t.Errorf("refused with %q", p.Detail)
		}
		began := time.Now()
		for other.request(t, "GET", "/v1/webhooks", "", key.with()...).status == http.StatusOK {
		}
		// 100 ms is the promise, on a machine that is not busy with other tests.
		if took := time.Since(began); took > time.Second {
			t.Errorf("the other copy took %v", took)
		}
	})
	t.Run("WhenTheyExpire", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "acme", `,"expires_at":"`+time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)+`"`, webhook.ScopeRead)
		want[any](t, b, http.StatusOK, "GET", "/v1/webhooks", "", key.with()...)
		var a *answer
		for deadline := time.Now().Add(10 * time.Second); ; {
			if a = b.request(t, "GET", "/v1/webhooks", "", key.with()...); a.status != http.StatusOK || time.Now().After(deadline) {
				break
			}
		}
		if p := a.problem(t, http.StatusUnauthorized, "unauthorized"); p.Detail != "The API key has expired." {
			t.Errorf("refused with %q", p.Detail)
		}
	})
	t.Run("NeverWereWhenMadeUp", func(t *testing.T) {
		t.Parallel()
		for range 2 { // from the database, and from memory
			refused(t, b, http.StatusUnauthorized, "unauthorized", "GET", "/v1/webhooks", "", "Authorization", "Bearer fhk_"+strings.Repeat("A", 43))
		}
		refused(t, other, http.StatusUnauthorized, "unauthorized", "GET", "/v1/webhooks", "") // the key of the other's configuration
	})
}

func TestTwoAuthorizationHeadersAreOneTooMany(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r, err := http.NewRequestWithContext(t.Context(), "GET", b.http.URL+"/v1/webhooks", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header["Authorization"] = []string{"Bearer " + testKey, "Bearer other"}
	response, err := b.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized {
		t.Errorf("answered %d", response.StatusCode)
	}
}

func TestLogLinesNameTheKeyAndNeverShowIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := newKey(t, b, "acme", `,"require_signature":true`, webhook.ScopeSubmit)
	b.request(t, "GET", "/v1/webhooks", "", key.with("X-Request-Id", "named")...)
	lines := b.logs.lines(t, "request", "named")
	if len(lines) != 1 || lines[0]["key_id"] != key.ID.String() {
		t.Errorf("lines are %v", lines)
	}
	b.logs.mu.Lock()
	defer b.logs.mu.Unlock()
	if text := b.logs.text.String(); strings.Contains(text, key.Text) || strings.Contains(text, key.SigningSecret) {
		t.Error("the log shows a key or its secret")
	}
}

func TestKeyUse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clock, err := postgres.NewClock(t.Context(), b.db)
	if err != nil {
		t.Fatal(err)
	}
	use := NewKeyUse(b.db, clock, nil)
	used, unused := newKey(t, b, "", "", webhook.ScopeRead), newKey(t, b, "", "", webhook.ScopeRead)
	lastUsed := func(id webhook.ID) *time.Time {
		t.Helper()
		k, _ := want[webhook.Key](t, b, http.StatusOK, "GET", "/v1/keys/"+id.String(), "")
		return k.LastUsedAt
	}
	use.record(used.ID)
	use.record(webhook.ID{})
	if err := use.writeOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := lastUsed(used.ID)
	if at == nil || time.Since(*at).Abs() > 2*time.Minute || !at.Equal(at.Truncate(time.Minute)) || lastUsed(unused.ID) != nil {
		t.Fatalf("last used at %v and %v", at, lastUsed(unused.ID))
	}

	// Of many uses in a minute nothing more is written.
	if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.api_keys SET last_used_at = NULL`); err != nil {
		t.Fatal(err)
	}
	use.mu.Lock()
	use.last[used.ID] = clock.Now().Add(time.Minute).Truncate(time.Minute) // whenever the minute ends
	use.mu.Unlock()
	for range 1000 {
		use.record(used.ID)
	}
	if err := use.writeOnce(t.Context()); err != nil || lastUsed(used.ID) != nil {
		t.Errorf("last used at %v, %v", lastUsed(used.ID), err)
	}

	// What could not be written is written later, and never moves back.
	b.server.keyUse.record(unused.ID)
	pool := use.pool
	closed, err := postgres.Open(t.Context(), b.db.Config().ConnString(), "test", 1)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	use.pool = closed
	use.record(unused.ID)
	if err := use.writeOnce(t.Context()); err == nil {
		t.Fatal("written on a closed pool")
	}
	use.pool = pool
	if err := use.writeOnce(t.Context()); err != nil || lastUsed(unused.ID) == nil {
		t.Errorf("last used at %v, %v", lastUsed(unused.ID), err)
	}
	later := clock.Now()
	if err := postgres.TouchKeys(t.Context(), b.db, []webhook.ID{unused.ID}, []time.Time{later.Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if got := lastUsed(unused.ID); time.Since(*got) > 3*time.Minute {
		t.Errorf("the last use has moved back to %v", got)
	}
	if use.mu.Lock(); len(use.pending) != 0 {
		t.Errorf("%v are pending still", slices.Collect(maps.Keys(use.pending)))
	}
	use.mu.Unlock()
}
