package ingest

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// sign is the headers of a signed request: the key, and the three of the
// signature made with its secrets at the given moment.
func (k *madeKey) sign(t testing.TB, id string, at time.Time, body string, more ...string) []string {
	t.Helper()
	secret, err := signature.ParseSecret(k.SigningSecret)
	if err != nil {
		t.Fatal(err)
	}
	return append(k.with(
		signature.HeaderID, id, signature.HeaderTimestamp, strconv.FormatInt(at.Unix(), 10),
		signature.HeaderSignature, signature.Sign([][]byte{secret}, id, at, []byte(body)),
	), more...)
}

// events is how many events a tenant has.
func events(t *testing.T, b *testBundle, tenant string) (n int) {
	t.Helper()
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.events WHERE tenant = $1`, tenant).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSignedSubmissions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := setupWith(t, options{pool: b.db, key: testKey})
	copies := []*testBundle{b, other}

	t.Run("AreAcceptedOnEveryRouteThatSubmits", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "routes", `,"require_signature":true`, webhook.ScopeSubmit)
		w := newWebhook(t, b, "routes", "")
		for i, call := range []struct {
			path, body, contentType string
			status                  int
		}{
			{"/v1/events", submitBody(`"tenant":"routes"`, `{ "exact" : 1 }`), "application/json", http.StatusAccepted},
			{"/v1/events/batch", `[` + submitBody(`"tenant":"routes"`, `1`) + `,` + submitBody(`"tenant":"routes"`, `2`) + `]`, "application/json", http.StatusOK},
			{"/v1/webhooks/" + w.ID.String() + "/events?type=a", "any\r\nbody", "text/plain", http.StatusAccepted},
		} {
			header := key.sign(t, "routes-"+strconv.Itoa(i), time.Now(), call.body, "Content-Type", call.contentType)
			want[any](t, b, call.status, "POST", call.path, call.body, header...)
			refused(t, b, http.StatusUnauthorized, "unauthorized", "POST", call.path, call.body+" ", header...)
			refused(t, b, http.StatusUnauthorized, "unauthorized", "POST", call.path, call.body, key.with("Content-Type", call.contentType)...)
		}
		if n := events(t, b, "routes"); n != 4 {
			t.Errorf("%d events are stored, want 4", n)
		}
	})
	t.Run("AreAskedForOnEveryRouteThatSubmits", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "asked", `,"require_signature":true`, webhook.ScopeSubmit)
		for route, asked := range rules {
			method, pattern, _ := strings.Cut(route, " ")
			if asked.scope == webhook.ScopeSubmit {
				p, _ := refused(t, b, http.StatusUnauthorized, "unauthorized", method, things{}.path(pattern), `{}`, key.with()...)
				if !strings.HasPrefix(p.Detail, "The API key requires signed submissions: ") {
					t.Errorf("%s says %q", route, p.Detail)
				}
			}
		}
	})
	t.Run("AreNotAskedForElsewhere", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "elsewhere", `,"require_signature":true`, webhook.ScopeRead)
		want[any](t, b, http.StatusOK, "GET", "/v1/webhooks", "", key.with()...)
	})
	t.Run("AreRefusedWithWhatIsWrong", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "wrong", `,"require_signature":true`, webhook.ScopeSubmit)
		stranger := newKey(t, b, "wrong", `,"require_signature":true`, webhook.ScopeSubmit)
		body, now := submitBody(`"tenant":"wrong"`, `1`), time.Now()
		good := key.sign(t, "id", now, body)
		set := func(name, value string) []string { return append(slices.Clone(good), name, value) }
		stranger.Text = key.Text // its secret with the other's key
		for _, tt := range []struct {
			header []string
			detail string
		}{
			{set("webhook-id", ""), "the header webhook-id must be there once"},
			{set("webhook-timestamp", ""), "the header webhook-timestamp must be there once"},
			{set("webhook-signature", ""), "the header webhook-signature must be there once"},
			{set("webhook-id", "another"), "no v1 signature in webhook-signature is that of one of its signing secrets over this id, timestamp and body"},
			{set("webhook-timestamp", strconv.FormatInt(now.Unix()-1, 10)), "no v1 signature"},
			{set("webhook-signature", "v1,AAAA"), "no v1 signature"},
			{set("webhook-signature", "v2,AAAA"), "no v1 signature"},
			{set("webhook-timestamp", "yesterday"), "webhook-timestamp must be whole Unix seconds"},
			{set("webhook-timestamp", "1e9"), "webhook-timestamp must be whole Unix seconds"},
			{stranger.sign(t, "id", now, body), "no v1 signature"},
			{key.sign(t, "id", now, body+"\n"), "no v1 signature"},
			{key.sign(t, "id", now.Add(-6*time.Minute), body), "webhook-timestamp is more than 300 seconds in the past"},
			{key.sign(t, "id", now.Add(6*time.Minute), body), "webhook-timestamp is more than 300 seconds in the future"},
			{key.sign(t, "has.dot", now, body), "webhook-id must have 1 to 200 visible ASCII characters and no dot"},
			{key.sign(t, strings.Repeat("i", 201), now, body), "webhook-id must have 1 to 200 visible ASCII characters and no dot"},
			{key.sign(t, "a b", now, body), "webhook-id must have 1 to 200 visible ASCII characters and no dot"},
		} {
			p, _ := refused(t, b, http.StatusUnauthorized, "unauthorized", "POST", "/v1/events", body, tt.header...)
			if !strings.HasPrefix(p.Detail, "The API key requires signed submissions: "+tt.detail) || strings.Contains(p.Detail, "whsec") {
				t.Errorf("detail is %q, want %q", p.Detail, tt.detail)
			}
		}
		for _, at := range []time.Time{now.Add(-4 * time.Minute), now.Add(4 * time.Minute)} {
			want[any](t, b, http.StatusAccepted, "POST", "/v1/events", body, key.sign(t, "at-"+strconv.FormatInt(at.Unix(), 10), at, body)...)
		}
		if n := events(t, b, "wrong"); n != 2 {
			t.Errorf("%d events are stored, want the two good ones", n)
		}
	})
	t.Run("AreStoredOnceHoweverOftenAndWhereverTheyAreSentAgain", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "replay", `,"require_signature":true`, webhook.ScopeSubmit)
		body := submitBody(`"tenant":"replay"`, `1`)
		header := key.sign(t, "once", time.Now(), body)
		ids := make(chan webhook.ID, 20)
		var senders sync.WaitGroup
		for i := range cap(ids) {
			senders.Go(func() {
				a := copies[i%2].request(t, "POST", "/v1/events", body, header...)
				// 409: another copy was just storing it.
				for a.status == http.StatusConflict {
					a = copies[i%2].request(t, "POST", "/v1/events", body, header...)
				}
				var accepted acceptedEvent
				if a.status == http.StatusAccepted {
					a.decode(t, &accepted)
				}
				ids <- accepted.ID
			})
		}
		senders.Wait()
		first := <-ids
		for range cap(ids) - 1 {
			if id := <-ids; id != first || id.IsZero() {
				t.Fatalf("answered with events %s and %s", first, id)
			}
		}
		a := other.request(t, "POST", "/v1/events", body, header...)
		if a.header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("headers of a replay are %v", a.header)
		}
		if n := events(t, b, "replay"); n != 1 {
			t.Errorf("%d events are stored", n)
		}
	})
	t.Run("AreNotStoredAgainByAnotherRoute", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "routed", `,"require_signature":true`, webhook.ScopeSubmit)
		w := newWebhook(t, b, "routed", "")
		raw := "/v1/webhooks/" + w.ID.String() + "/events?type=a"
		ndjson := []string{"Content-Type", "application/x-ndjson"}
		body := submitBody(`"tenant":"routed"`, `1`)
		for id, routes := range map[string][]string{
			"single": {"/v1/events", "/v1/events/batch", raw}, "batched": {"/v1/events/batch", "/v1/events", raw}, "raw": {raw, "/v1/events", "/v1/events/batch"},
		} {
			before := events(t, b, "routed")
			header := key.sign(t, id, time.Now(), body, ndjson...)
			for _, route := range routes {
				b.request(t, "POST", route, body, header...)
			}
			if n := events(t, b, "routed") - before; n != 1 {
				t.Errorf("%d events are stored by %v", n, routes)
			}
		}
	})
	t.Run("AreTakenByTheirFirstRouteOnlyWhateverItMadeOfThem", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "bound", `,"require_signature":true`, webhook.ScopeSubmit)
		type call struct{ path, contentType string }
		rawOf := func(eventType string) call {
			return call{"/v1/webhooks/" + newWebhook(t, b, "bound", "").ID.String() + "/events?type=" + eventType, "text/plain"}
		}
		raw := rawOf("a")
		routes := map[string]call{
			"single": {"/v1/events", "application/json"}, "array": {"/v1/events/batch", "application/json"},
			"lines": {"/v1/events/batch", "application/x-ndjson"}, "raw": raw, "raw of another webhook": rawOf("a"),
			"raw as another type":         {strings.Replace(raw.path, "type=a", "type=b", 1), raw.contentType},
			"raw as another content type": {raw.path, "application/octet-stream"},
		}
		good := submitBody(`"tenant":"bound"`, `1`)
		bad := submitBody(`"webhook_id":"`+webhook.NewID(time.Now()).String()+`"`, `1`)
		keyed := `{"tenant":"bound","type":"a","payload":1,"idempotency_key":"own"}`
		for _, tt := range []struct {
			id, route, body string
			stored          int
		}{
			{"batch with a refused first", "array", "[\n" + bad + ",\n" + good + "\n]", 1},
			{"batch with a key in the first", "array", "[\n" + keyed + ",\n" + good + "\n]", 2},
			{"batch with nothing sound", "array", "[" + bad + "]", 0},
			{"lines", "lines", bad + "\n" + good, 1},
			{"one line", "lines", good, 1},
			{"raw that looks like a batch", "raw", "[\n" + good + ",\n" + good + "\n]", 1},
			{"raw that looks like an event", "raw", good, 1},
			{"event in an event", "single", `{"tenant":"bound","type":"a","payload":` + "\n" + good + "\n}", 1},
			{"refused event", "single", bad, 0},
			{"what no route can read", "single", "{\n" + good + "\n", 0},
		} {
			before := events(t, b, "bound")
			id := strings.ReplaceAll(tt.id, " ", "-")
			first := key.sign(t, id, time.Now(), tt.body)
			send := func(b *testBundle, to call) *answer {
				return b.request(t, "POST", to.path, tt.body, append(slices.Clone(first), "Content-Type", to.contentType)...)
			}
			was := send(b, routes[tt.route])
			if n := events(t, b, "bound") - before; n != tt.stored {
				t.Fatalf("%s: %d events are stored: %d %s", tt.id, n, was.status, was.body)
			}
			for name, to := range routes {
				for _, b := range copies {
					a := send(b, to)
					if name != tt.route && (a.status != http.StatusUnprocessableEntity || !strings.Contains(string(a.body), "on another route")) {
						t.Errorf("%s, sent to %s: %d %s", tt.id, name, a.status, a.body)
					}
					if name == tt.route && a.status != was.status {
						t.Errorf("%s, sent again: %d %s, before %d", tt.id, a.status, a.body, was.status)
					}
				}
			}
			if n := events(t, b, "bound") - before; n != tt.stored {
				t.Errorf("%s: %d events are stored in the end, want %d", tt.id, n, tt.stored)
			}
		}
	})
	t.Run("CannotBeTurnedToAnotherTenant", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "", `,"require_signature":true`, webhook.ScopeSubmit)
		w := newWebhook(t, b, "turned", "")
		body := submitBody(`"tenant":"meant"`, `1`)
		header := key.sign(t, "turned", time.Now(), body)
		want[any](t, b, http.StatusAccepted, "POST", "/v1/events", body, header...)
		p, _ := refused(t, b, http.StatusForbidden, "forbidden", "POST", "/v1/webhooks/"+w.ID.String()+"/events?type=a", body, header...)
		if !strings.Contains(p.Detail, "does not cover the webhook in the path") || events(t, b, "turned") != 0 {
			t.Errorf("refused with %q", p.Detail)
		}
	})
	t.Run("HaveNoOtherIdempotencyKey", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, b, "keyed", `,"require_signature":true`, webhook.ScopeSubmit)
		body := submitBody(`"tenant":"keyed"`, `1`)
		header := key.sign(t, "mine", time.Now(), body)
		refused(t, b, http.StatusBadRequest, "malformed-request", "POST", "/v1/events", body, append(header, "Idempotency-Key", "other")...)
		want[any](t, b, http.StatusAccepted, "POST", "/v1/events", body, append(header, "Idempotency-Key", "mine")...)
		want[any](t, b, http.StatusAccepted, "POST", "/v1/events", body, header...)
		changed := submitBody(`"tenant":"keyed"`, `2`)
		refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/events", changed, key.sign(t, "mine", time.Now(), changed)...)
		if n := events(t, b, "keyed"); n != 1 {
			t.Errorf("%d events are stored", n)
		}
	})
	t.Run("MayBeSignedWithEitherSecretWhileRotating", func(t *testing.T) {
		t.Parallel()
		old := newKey(t, b, "rotate", `,"require_signature":true`, webhook.ScopeSubmit)
		send := func(b *testBundle, key madeKey, id string) int {
			body := submitBody(`"tenant":"rotate"`, `1`)
			return b.request(t, "POST", "/v1/events", body, key.sign(t, id, time.Now(), body)...).status
		}
		if status := send(b, old, "before"); status != http.StatusAccepted {
			t.Fatalf("before the rotation %d", status)
		}
		rotate := func(body string) madeKey {
			made, _ := want[madeKey](t, b, http.StatusCreated, "POST", "/v1/keys/"+old.ID.String()+"/secrets", body)
			return madeKey{ID: old.ID, Text: old.Text, SigningSecret: made.SigningSecret}
		}
		middle := rotate(`{}`)
		for name, key := range map[string]madeKey{"old": old, "new": middle} {
			if status := send(b, key, "overlap-"+name); status != http.StatusAccepted {
				t.Errorf("during the overlap the %s secret gets %d", name, status)
			}
		}
		latest := rotate(`{"expire_previous_after_seconds":0}`)
		for name, key := range map[string]madeKey{"old": old, "middle": middle} {
			if status := send(b, key, "after-"+name); status != http.StatusUnauthorized {
				t.Errorf("after the overlap the %s secret gets %d", name, status)
			}
		}
		if status := send(b, latest, "after-latest"); status != http.StatusAccepted {
			t.Errorf("the latest secret gets %d", status)
		}
		deadline := time.Now().Add(10 * time.Second)
		for i := 0; send(other, old, "elsewhere-"+strconv.Itoa(i)) == http.StatusAccepted; i++ {
			if time.Now().After(deadline) {
				t.Fatal("the other copy takes the old secret still")
			}
		}
	})
}

func TestTheGoClientManagesKeysAndSigns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dial := func(key string, opts ...client.Option) *client.Client {
		c, err := client.New(b.http.URL, key, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	keys := dial(testKey).Keys()
	tenant := "client"
	made, err := keys.Create(t.Context(), client.NewKey{
		Description: "d", Tenant: &tenant, Scopes: []client.Scope{client.ScopeSubmit}, RequireSignature: true,
		AllowedCIDRs: []string{"127.0.0.0/8"}, ExpiresAt: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	second, err := keys.RotateSecret(t.Context(), made.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w := newWebhook(t, b, tenant, "")
	for _, secret := range []string{made.SigningSecret, second} {
		c := dial(made.Text, client.WithSigningSecret(secret))
		event := client.Event{Tenant: tenant, Type: "a", Payload: json.RawMessage(`{ "n" : 1 }`)}
		if _, err := c.Submit(t.Context(), event); err != nil {
			t.Errorf("Submit: %v", err)
		}
		if _, err := c.SubmitRaw(t.Context(), w.ID.String(), "a", "text/plain", []byte("raw")); err != nil {
			t.Errorf("SubmitRaw: %v", err)
		}
		results, err := c.SubmitBatch(t.Context(), []client.Event{event, event})
		if err != nil || len(results) != 2 || results[0].Err != nil || results[1].Err != nil {
			t.Errorf("SubmitBatch: %v, %v", results, err)
		}
	}
	if n := events(t, b, tenant); n != 8 {
		t.Errorf("%d events are stored, want 8", n)
	}
	if _, err := dial(made.Text).Submit(t.Context(), client.Event{Tenant: tenant, Type: "a", Payload: json.RawMessage(`1`)}); err == nil {
		t.Error("an unsigned submission is accepted")
	}
	if err := keys.Revoke(t.Context(), made.ID); err != nil {
		t.Error(err)
	}
	got, err := keys.Get(t.Context(), made.ID)
	if err != nil || got.RevokedAt == nil || got.Description != "d" || *got.Tenant != tenant {
		t.Errorf("key is %+v, %v", got, err)
	}
	var listed []string
	for key, err := range keys.List(t.Context(), client.ListKeys{Tenant: tenant, PageSize: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, key.ID)
	}
	if !slices.Equal(listed, []string{made.ID}) {
		t.Errorf("listed %v", listed)
	}
}

// What cannot be verified is the caller's fault, whatever it is.
func FuzzVerify(f *testing.F) {
	f.Add("id", "1700000000", "v1,AAAA", "{}")
	f.Add("", "", "", "")
	f.Add("a.b", "-1", "v1, v1,", "\x00")
	f.Add("a", "99999999999999999999", strings.Repeat("v1,x ", 100), "x")
	clock, err := postgres.NewClock(f.Context(), pgtest.DB(f))
	if err != nil {
		f.Fatal(err)
	}
	s := &Server{clock: clock}
	secrets := [][]byte{[]byte(strings.Repeat("s", 32))}
	f.Fuzz(func(t *testing.T, id, timestamp, signatures, body string) {
		header := http.Header{}
		header.Set(signature.HeaderID, id)
		header.Set(signature.HeaderTimestamp, timestamp)
		header.Set(signature.HeaderSignature, signatures)
		if got, err := s.verify(header, secrets, []byte(body)); webhook.ErrorCode(err) != webhook.CodeUnauthorized || got != "" {
			t.Errorf("%q passes as %q, %v", header, got, err)
		}
		// The same, signed, passes if it can be signed at all.
		now := clock.Now()
		header.Set(signature.HeaderTimestamp, strconv.FormatInt(now.Unix(), 10))
		header.Set(signature.HeaderSignature, signature.Sign(secrets, id, now, []byte(body)))
		_, err := s.verify(header, secrets, []byte(body))
		if possible := isVisibleASCII(id, maxSignedID) && !strings.Contains(id, "."); (err == nil) != possible {
			t.Errorf("%q signed: %v", id, err)
		}
		_, err = s.verify(header, secrets, append([]byte(body), 'x'))
		if err == nil {
			t.Errorf("%q passes with another body", id)
		}
	})
}

func TestAKeyIsShownOnlyWhereItIsMade(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := newKey(t, b, "acme", `,"require_signature":true`, webhook.ScopeAdmin)
	for _, path := range []string{"/v1/keys", "/v1/keys/" + key.ID.String()} {
		a := b.request(t, "GET", path, "", key.with()...)
		if a.status != http.StatusOK || strings.Contains(string(a.body), key.Text) || strings.Contains(string(a.body), "whsec_") || !json.Valid(a.body) {
			t.Errorf("%s answers %d %s", path, a.status, a.body)
		}
	}
}
