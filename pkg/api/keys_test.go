package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

type keyAnswer struct {
	webhook.Key
	Text          string `json:"key"`
	SigningSecret string `json:"signing_secret"`
}

// as makes a request as a principal.
func (b *testBundle) as(t *testing.T, p webhook.Principal, method, target, body string) (*httptest.ResponseRecorder, error) {
	t.Helper()
	var failed error
	ctx := context.WithValue(t.Context(), errorKey{}, &failed)
	r := httptest.NewRequest(method, target, strings.NewReader(body)).WithContext(context.WithValue(ctx, principalKey{}, p))
	recorder := httptest.NewRecorder()
	b.echo.ServeHTTP(recorder, r)
	if failed == nil {
		checkContract(t, r, body, recorder)
	}
	return recorder, failed
}

// adminOf is an administrator of one tenant.
func adminOf(tenant string) webhook.Principal {
	return webhook.Principal{Tenant: &tenant, Scopes: []webhook.Scope{webhook.ScopeAdmin}}
}

func createKey(t *testing.T, b *testBundle, body string) keyAnswer {
	t.Helper()
	k, _ := must[keyAnswer](t, b, http.StatusCreated, "POST", "/v1/keys", body)
	return k
}

func TestCreateKey(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("ShowsItsTextOnceAndKeepsTheHash", func(t *testing.T) {
		t.Parallel()
		k, header := must[keyAnswer](t, b, http.StatusCreated, "POST", "/v1/keys", `{"tenant":"acme","scopes":["submit"]}`)
		hash, ok := webhook.HashKeyText(k.Text)
		if !ok || !strings.HasPrefix(k.Text, k.Hint) || k.SigningSecret != "" ||
			header.Get("Location") != "/v1/keys/"+k.ID.String() || header.Get("Cache-Control") != "no-store" {
			t.Fatalf("created %+v, headers %v", k, header)
		}
		var row string
		var stored []byte
		if err := b.db.QueryRow(t.Context(), `SELECT hash, to_jsonb(k)::text FROM fairhook.api_keys k WHERE id = $1`, k.ID).Scan(&stored, &row); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(stored, hash[:]) || strings.Contains(row, k.Text) {
			t.Errorf("row is %s", row)
		}
		recorder, err := b.call(t, "GET", header.Get("Location"), "")
		if answer := recorder.Body.String(); err != nil || strings.Contains(answer, k.Text) || strings.Contains(answer, `"key"`) || strings.Contains(answer, "secret") {
			t.Errorf("reading it answers %s, %v", answer, err)
		}
	})
	t.Run("TakesEveryField", func(t *testing.T) {
		t.Parallel()
		ends := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
		made := createKey(t, b, `{"description":"ci","tenant":null,"scopes":["read","manage"],"allowed_cidrs":["10.0.0.0/8"],
			"expires_at":"`+ends.Format(time.RFC3339Nano)+`","require_signature":true}`)
		got, _ := must[keyAnswer](t, b, http.StatusOK, "GET", "/v1/keys/"+made.ID.String(), "")
		for _, k := range []keyAnswer{made, got} {
			if k.Description != "ci" || k.Tenant != nil || !slices.Equal(k.Scopes, []webhook.Scope{"read", "manage"}) || k.RevokedAt != nil ||
				!slices.Equal(k.AllowedCIDRs, []string{"10.0.0.0/8"}) || !k.ExpiresAt.Equal(ends) || !k.RequireSignature || k.CreatedAt.IsZero() {
				t.Errorf("key is %+v", k)
			}
		}
		if _, err := signature.ParseSecret(made.SigningSecret); err != nil || !strings.HasPrefix(made.SigningSecret, "whsec_") {
			t.Errorf("signing secret is %v", err)
		}
		var sealed []byte
		if err := b.db.QueryRow(t.Context(), `SELECT sealed FROM fairhook.api_key_secrets WHERE key_id = $1`, made.ID).Scan(&sealed); err != nil {
			t.Fatal(err)
		}
		if text, err := b.box.Open(sealed, made.ID.String()); err != nil || string(text) != made.SigningSecret || bytes.Contains(sealed, text) {
			t.Errorf("sealed secret opens as %q, %v", text, err)
		}
	})
	t.Run("ListsEverythingThatIsWrongAtOnce", func(t *testing.T) {
		t.Parallel()
		for body, want := range map[string][]string{
			`{}`:                            {"/scopes: is required", "/tenant: is required: a tenant, or null for all"},
			`{"tenant":null,"scopes":null}`: {"/scopes: is required"},
			`{"tenant":"","scopes":["root",5],"allowed_cidrs":["10.0.0.1/8"],"expires_at":"2020-01-01T00:00:00Z","require_signature":"yes","description":7}`: {
				"/allowed_cidrs/0: has bits beyond its length: did you mean 10.0.0.0/8?", "/description: must be a string, not a number",
				"/expires_at: must be in the future", "/require_signature: must be true or false, not a string",
				`/scopes/0: must be "submit", "read", "manage" or "admin"`, "/scopes/1: must be a string, not a number", "/tenant: must not be empty",
			},
		} {
			if got := refused(t, b, webhook.CodeInvalid, "POST", "/v1/keys", body); !slices.Equal(got, want) {
				t.Errorf("faults of %s are\n%q, want\n%q", body, got, want)
			}
		}
		refused(t, b, webhook.CodeMalformed, "POST", "/v1/keys", `{"tenant":null,"scopes":["admin"],"id":"x"}`)
		refused(t, b, webhook.CodeMalformed, "POST", "/v1/keys?x=1", `{"tenant":null,"scopes":["admin"]}`)
	})
	t.Run("MakesNoneThatMayDoMoreThanItsMaker", func(t *testing.T) {
		t.Parallel()
		ends := time.Now().Add(time.Hour)
		bounded := adminOf("narrow")
		bounded.ExpiresAt, bounded.Networks = &ends, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		at := func(moment time.Time) string { return `"` + moment.UTC().Format(time.RFC3339Nano) + `"` }
		for _, tt := range []struct {
			tenant, cidrs, expires string
			made                   bool
		}{
			{`"narrow"`, `["10.1.0.0/16"]`, at(ends.Add(-time.Minute)), true},
			{`null`, `["10.1.0.0/16"]`, at(ends.Add(-time.Minute)), false},
			{`"other"`, `["10.1.0.0/16"]`, at(ends.Add(-time.Minute)), false},
			{`"narrow"`, `[]`, at(ends.Add(-time.Minute)), false},
			{`"narrow"`, `["0.0.0.0/0"]`, at(ends.Add(-time.Minute)), false},
			{`"narrow"`, `["10.1.0.0/16"]`, `null`, false},
			{`"narrow"`, `["10.1.0.0/16"]`, at(ends.Add(time.Minute)), false},
		} {
			body := `{"scopes":["submit"],"tenant":` + tt.tenant + `,"allowed_cidrs":` + tt.cidrs + `,"expires_at":` + tt.expires + `}`
			recorder, err := b.as(t, bounded, "POST", "/v1/keys", body)
			if tt.made && (err != nil || recorder.Code != http.StatusCreated) || !tt.made && webhook.ErrorCode(err) != webhook.CodeForbidden {
				t.Errorf("%s: %d, %v", body, recorder.Code, err)
			}
		}
		var n int
		if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.api_keys WHERE tenant = 'narrow'`).Scan(&n); err != nil || n != 1 {
			t.Errorf("%d keys are stored, %v", n, err)
		}
	})
}

func TestListKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var want []webhook.ID
	for i := range 5 {
		want = append([]webhook.ID{createKey(t, b, fmt.Sprintf(`{"tenant":"acme","scopes":["read"],"description":"%d"}`, i)).ID}, want...)
	}
	everybodys := createKey(t, b, `{"tenant":null,"scopes":["read"]}`)
	other := createKey(t, b, `{"tenant":"other","scopes":["read"]}`)

	t.Run("InPagesNewestFirst", func(t *testing.T) {
		t.Parallel()
		var got []webhook.ID
		for target := "/v1/keys?tenant=acme&limit=2"; ; {
			list, header := must[listAnswer[keyAnswer]](t, b, http.StatusOK, "GET", target, "")
			for _, k := range list.Data {
				got = append(got, k.ID)
			}
			if list.NextCursor == nil {
				break
			}
			if link := header.Get("Link"); !strings.Contains(link, *list.NextCursor) {
				t.Errorf("Link is %q", link)
			}
			target = "/v1/keys?tenant=acme&limit=2&cursor=" + *list.NextCursor
		}
		if !slices.Equal(got, want) {
			t.Errorf("listed %v, want %v", got, want)
		}
	})
	t.Run("ShowsAllToAnAdminOfAllAndOnlyItsOwnToOthers", func(t *testing.T) {
		t.Parallel()
		all, _ := must[listAnswer[keyAnswer]](t, b, http.StatusOK, "GET", "/v1/keys", "")
		if len(all.Data) != 7 || all.Data[0].ID != other.ID || all.Data[1].ID != everybodys.ID {
			t.Errorf("an admin of all sees %d", len(all.Data))
		}
		for target, n := range map[string]int{"/v1/keys": 5, "/v1/keys?tenant=acme": 5, "/v1/keys?tenant=other": 0} {
			recorder, err := b.as(t, adminOf("acme"), "GET", target, "")
			if got := strings.Count(recorder.Body.String(), `"hint"`); err != nil || got != n {
				t.Errorf("%s shows acme's admin %d, %v; want %d", target, got, err, n)
			}
		}
	})
	t.Run("RefusesACursorThatIsNotItsOwn", func(t *testing.T) {
		t.Parallel()
		create(t, b, `{"tenant":"c","url":"https://example.com"}`)
		create(t, b, `{"tenant":"c","url":"https://example.com"}`)
		webhooks, _ := must[listAnswer[webhookAnswer]](t, b, http.StatusOK, "GET", "/v1/webhooks?limit=1", "")
		for _, cursor := range []string{*webhooks.NextCursor, "x", "aw=="} {
			refused(t, b, webhook.CodeMalformed, "GET", "/v1/keys?cursor="+cursor, "")
		}
	})
}

func TestRevokeKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k := createKey(t, b, `{"tenant":"acme","scopes":["read"],"require_signature":true}`)
	path := "/v1/keys/" + k.ID.String()
	var first time.Time
	for range 2 { // again changes nothing
		must[any](t, b, http.StatusNoContent, "DELETE", path, "")
		got, _ := must[keyAnswer](t, b, http.StatusOK, "GET", path, "")
		if got.RevokedAt == nil || !first.IsZero() && !first.Equal(*got.RevokedAt) {
			t.Fatalf("key is %+v", got)
		}
		first = *got.RevokedAt
	}
	refused(t, b, webhook.CodeConflict, "POST", path+"/secrets", `{}`)
}

func TestRotateKeySecret(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// secrets is the lives left of a key's signing secrets, newest first, in
	// seconds; -1 for one without an end.
	secrets := func(t *testing.T, id webhook.ID) (lives []int) {
		t.Helper()
		err := b.db.QueryRow(t.Context(), `
			SELECT array_agg(coalesce(round(extract(epoch FROM expires_at - now())), -1)::int ORDER BY id DESC)
			FROM fairhook.api_key_secrets WHERE key_id = $1`, id).Scan(&lives)
		if err != nil {
			t.Fatal(err)
		}
		return lives
	}
	near := func(got []int, want ...int) bool {
		return slices.EqualFunc(got, want, func(a, b int) bool { return a == b || b > 0 && a <= b && a > b-60 })
	}

	t.Run("LeavesTheOldOnesValidForAWhile", func(t *testing.T) {
		t.Parallel()
		k := createKey(t, b, `{"tenant":"acme","scopes":["submit"],"require_signature":true}`)
		path := "/v1/keys/" + k.ID.String() + "/secrets"
		for _, step := range []struct {
			body string
			want []int
		}{
			{`{}`, []int{-1, 86400}},
			{`{"expire_previous_after_seconds":null}`, []int{-1, 86400, 86400}},
			{`{"expire_previous_after_seconds":3600}`, []int{-1, 3600, 3600, 3600}},
			{`{"expire_previous_after_seconds":2592000}`, []int{-1, 2592000, 3600, 3600, 3600}}, // none lives longer than it was to
			{`{"expire_previous_after_seconds":0}`, []int{-1}},
		} {
			made, header := must[keyAnswer](t, b, http.StatusCreated, "POST", path, step.body)
			if _, err := signature.ParseSecret(made.SigningSecret); err != nil || made.ID.IsZero() || header.Get("Cache-Control") != "no-store" {
				t.Errorf("answer is %+v, %v", made, header)
			}
			if got := secrets(t, k.ID); !near(got, step.want...) {
				t.Errorf("after %s they live %v s, want %v", step.body, got, step.want)
			}
		}
	})
	t.Run("HasABoundOnHowManyAreValidAtOnce", func(t *testing.T) {
		t.Parallel()
		k := createKey(t, b, `{"tenant":"acme","scopes":["submit"],"require_signature":true}`)
		path := "/v1/keys/" + k.ID.String() + "/secrets"
		for range 9 {
			must[any](t, b, http.StatusCreated, "POST", path, `{}`)
		}
		refused(t, b, webhook.CodeConflict, "POST", path, `{}`)
		if got := len(secrets(t, k.ID)); got != 10 {
			t.Errorf("%d secrets", got)
		}
		must[any](t, b, http.StatusCreated, "POST", path, `{"expire_previous_after_seconds":0}`)
	})
	t.Run("IsForKeysThatRequireSignatures", func(t *testing.T) {
		t.Parallel()
		k := createKey(t, b, `{"tenant":"acme","scopes":["submit"]}`)
		refused(t, b, webhook.CodeConflict, "POST", "/v1/keys/"+k.ID.String()+"/secrets", `{}`)
	})
	t.Run("RefusesLivesThatAreNone", func(t *testing.T) {
		t.Parallel()
		path := "/v1/keys/" + webhook.NewID(time.Now()).String() + "/secrets"
		for _, value := range []string{"-1", "2592001", `"x"`, "1.5"} {
			got := refused(t, b, webhook.CodeInvalid, "POST", path, `{"expire_previous_after_seconds":`+value+`}`)
			if len(got) != 1 || !strings.HasPrefix(got[0], "/expire_previous_after_seconds: must be ") {
				t.Errorf("faults of %s are %q", value, got)
			}
		}
	})
}

// Package ingest's tests try every route; these show that the routes of this
// package see to tenancy by themselves.
func TestTenancy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := create(t, b, `{"tenant":"acme","url":"https://example.com"}`)
	k := createKey(t, b, `{"tenant":"acme","scopes":["read"],"require_signature":true}`)
	everybodys := createKey(t, b, `{"tenant":null,"scopes":["admin"],"require_signature":true}`)
	if _, err := b.as(t, adminOf("acme"), "GET", "/v1/webhooks/"+w.ID.String(), ""); err != nil {
		t.Errorf("its own: %v", err)
	}
	for _, p := range []webhook.Principal{adminOf("other"), webhook.Nobody()} {
		for _, call := range []struct{ method, path, body string }{
			{"GET", "/v1/webhooks/" + w.ID.String(), ""},
			{"PATCH", "/v1/webhooks/" + w.ID.String(), `{"url":"https://evil.example"}`},
			{"PATCH", "/v1/webhooks/" + w.ID.String(), `nonsense`},
			{"DELETE", "/v1/webhooks/" + w.ID.String(), ""},
			{"POST", "/v1/webhooks/" + w.ID.String() + "/pause", ""},
			{"POST", "/v1/webhooks/" + w.ID.String() + "/resume", ""},
			{"GET", "/v1/webhooks/" + w.ID.String() + "/secrets", ""},
			{"GET", "/v1/keys/" + k.ID.String(), ""},
			{"DELETE", "/v1/keys/" + k.ID.String(), ""},
			{"POST", "/v1/keys/" + k.ID.String() + "/secrets", `{}`},
			{"GET", "/v1/keys/" + everybodys.ID.String(), ""},
			{"DELETE", "/v1/keys/" + everybodys.ID.String(), ""},
			{"POST", "/v1/keys/" + everybodys.ID.String() + "/secrets", `{}`},
		} {
			_, foreign := b.as(t, p, call.method, call.path, call.body)
			// What is another's is no different from what does not exist.
			nowhere := webhook.NewID(time.Now()).String()
			_, missing := b.as(t, p, call.method, strings.NewReplacer(w.ID.String(), nowhere, k.ID.String(), nowhere, everybodys.ID.String(), nowhere).Replace(call.path), call.body)
			var seen, unseen *webhook.Error
			if !errors.As(foreign, &seen) || !errors.As(missing, &unseen) || seen.Code != webhook.CodeNotFound || unseen.Code != seen.Code ||
				len(seen.Message) != len(unseen.Message) {
				t.Errorf("%s %s: %v, and for one that does not exist %v", call.method, call.path, foreign, missing)
			}
		}
		if _, err := b.as(t, p, "POST", "/v1/webhooks", `{"tenant":"acme","url":"https://example.com"}`); webhook.ErrorCode(err) != webhook.CodeForbidden {
			t.Errorf("a webhook for another tenant: %v", err)
		}
		for _, target := range []string{"/v1/webhooks", "/v1/webhooks?tenant=acme"} {
			if recorder, err := b.as(t, p, "GET", target, ""); err != nil || !strings.HasPrefix(recorder.Body.String(), `{"data":[],`) {
				t.Errorf("%s: %s, %v", target, recorder.Body, err)
			}
		}
	}
	got, _ := must[webhookAnswer](t, b, http.StatusOK, "GET", "/v1/webhooks/"+w.ID.String(), "")
	if !got.UpdatedAt.Equal(w.UpdatedAt) {
		t.Errorf("the webhook has been changed: %+v", got)
	}
	if got, _ := must[keyAnswer](t, b, http.StatusOK, "GET", "/v1/keys/"+k.ID.String(), ""); got.RevokedAt != nil {
		t.Error("the key has been revoked")
	}
}
