package api_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
	"github.com/fairhook/fairhook/pkg/webhook/certtest"
)

// body is a JSON text of the given members.
func body(t *testing.T, members map[string]any) string {
	t.Helper()
	text, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// secretHook creates a webhook with every kind of secret.
func secretHook(t *testing.T, b *testBundle, ca *certtest.Authority, auth map[string]any) webhook.ID {
	t.Helper()
	pair := ca.Issue(t, "client")
	return create(t, b, body(t, map[string]any{
		"tenant": "acme", "url": "https://example.com", "headers": map[string]string{"X-Key": "hidden-header"}, "auth": auth,
		"tls": map[string]any{"client_certificate": pair.Certificate, "client_key": pair.Key, "ca_certificates": ca.PEM, "server_name": "hooks.internal"},
	})).ID
}

var (
	basicAuth  = map[string]any{"type": "basic", "username": "shop", "password": "hidden-password"}
	oauth2Auth = map[string]any{
		"type": "oauth2", "token_url": "https://login.example.com/token", "client_id": "me", "client_secret": "hidden-client", "scopes": []string{"a"},
	}
)

// stored opens what the database has of a webhook.
func stored(t *testing.T, b *testBundle, id webhook.ID) *webhook.Webhook {
	t.Helper()
	w, err := postgres.Webhook(t.Context(), b.db, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.Open(b.box, w); err != nil {
		t.Fatal(err)
	}
	return w
}

// inTheOpen is the webhook's row and that of its credentials, as text.
func inTheOpen(t *testing.T, b *testBundle, id webhook.ID) (headers, row string) {
	t.Helper()
	err := b.db.QueryRow(t.Context(), `
		SELECT w.headers::text, w::text || coalesce(c::text, '') || coalesce(encode(c.sealed, 'escape'), '')
		FROM fairhook.webhooks w LEFT JOIN fairhook.webhook_credentials c ON c.webhook_id = w.id WHERE w.id = $1`, id).Scan(&headers, &row)
	if err != nil {
		t.Fatal(err)
	}
	return headers, row
}

func TestCredentialsAreNotShown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ca := certtest.New(t, "The Authority")
	for name, auth := range map[string]map[string]any{
		"Basic": basicAuth, "OAuth2": oauth2Auth, "Bearer": {"type": "bearer", "token": "hidden-token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := secretHook(t, b, ca, auth).String()
			answers := ""
			for _, call := range [][3]string{
				{"GET", "/v1/webhooks/" + id, ""},
				{"GET", "/v1/webhooks?limit=100", ""},
				{"PATCH", "/v1/webhooks/" + id, `{"description":"d"}`},
				{"POST", "/v1/webhooks/" + id + "/pause", ""},
				{"POST", "/v1/webhooks/" + id + "/resume", ""},
				{"POST", "/v1/webhooks", body(t, map[string]any{"tenant": "acme", "url": "https://example.com", "auth": auth})},
			} {
				recorder, err := b.call(t, call[0], call[1], call[2])
				if err != nil {
					t.Fatalf("%s %s: %v", call[0], call[1], err)
				}
				answers += recorder.Body.String()
			}
			headers, row := inTheOpen(t, b, stored(t, b, mustID(t, id)).ID)
			if headers != "{}" {
				t.Errorf("headers are stored as %s", headers)
			}
			for _, secret := range []string{"hidden", "MII", "PRIVATE KEY"} {
				if strings.Contains(answers, secret) || strings.Contains(row, secret) {
					t.Errorf("%q is in %s or in the rows %s", secret, answers, row)
				}
			}
			for _, fact := range []string{`"X-Key":"***"`, `"client_key":"***"`, `"subject":"CN=client"`, `"subject":"CN=The Authority"`, `"server_name":"hooks.internal"`} {
				if !strings.Contains(answers, fact) {
					t.Errorf("%s is not shown", fact)
				}
			}
		})
	}
}

func mustID(t *testing.T, text string) webhook.ID {
	t.Helper()
	id, err := webhook.ParseID(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestChangeCredentials(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ca := certtest.New(t, "ca")
	update := func(t *testing.T, id webhook.ID, change string) webhookAnswer {
		t.Helper()
		w, _ := must[webhookAnswer](t, b, http.StatusOK, "PATCH", "/v1/webhooks/"+id.String(), change)
		return w
	}
	// closeGate closes the webhook's gate; gates counts those that are closed.
	closeGate := func(t *testing.T, id webhook.ID) {
		t.Helper()
		_, err := b.db.Exec(t.Context(), `
			INSERT INTO fairhook.lane_gates (webhook_id, cause, until, closed_at, attempt_at) VALUES ($1, 'auth', now() + interval '1 hour', now(), now())`, id)
		if err != nil {
			t.Fatal(err)
		}
	}
	gates := func(t *testing.T, id webhook.ID) (n int) {
		t.Helper()
		if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.lane_gates WHERE webhook_id = $1`, id).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	t.Run("KeepsWhatIsGivenAsThreeAsterisks", func(t *testing.T) {
		t.Parallel()
		id := secretHook(t, b, ca, oauth2Auth)
		before := stored(t, b, id)
		update(t, id, `{"headers":{"x-key":"***","X-New":"new"},"auth":{"type":"oauth2","token_url":"https://login.example.com/token",
			"client_id":"you","client_secret":"***","auth_style":"body"},"tls":{"client_certificate":"***","client_key":"***"}}`)
		w := stored(t, b, id)
		if w.Headers["x-key"].Reveal() != "hidden-header" || w.Headers["X-New"].Reveal() != "new" || len(w.Headers) != 2 {
			t.Errorf("headers are %v", webhook.RevealAll(w.Headers))
		}
		if w.Auth.ClientSecret.Reveal() != "hidden-client" || w.Auth.ClientID != "you" || w.Auth.AuthStyle != webhook.AuthStyleBody || len(w.Auth.Scopes) != 0 {
			t.Errorf("auth is %+v", w.Auth)
		}
		if w.TLS.ClientKey.Reveal() != before.TLS.ClientKey.Reveal() || !w.TLS.CACertificates.IsZero() || w.TLS.ServerName != "" {
			t.Errorf("tls is %+v", w.TLS)
		}
	})

	t.Run("KeepsThemForAnotherURL", func(t *testing.T) {
		t.Parallel()
		// Who may change the URL may know what is sent to it; docs/receiver-identity.md says so.
		id := secretHook(t, b, ca, basicAuth)
		for _, change := range []string{
			`{"url":"https://example.org"}`,
			`{"url":"https://example.net","headers":{"X-Key":"***"},"auth":{"type":"basic","username":"shop","password":"***"}}`,
		} {
			update(t, id, change)
			if w := stored(t, b, id); w.Headers["X-Key"].Reveal() != "hidden-header" || w.Auth.Password.Reveal() != "hidden-password" || w.TLS == nil {
				t.Errorf("after %s stored %+v", change, w)
			}
		}
	})

	t.Run("ComesWithAllElse", func(t *testing.T) {
		t.Parallel()
		id := secretHook(t, b, ca, oauth2Auth)
		path := "/v1/webhooks/" + id.String()
		got := update(t, id, `{"headers":{"X-Key":"***"},"tls":null,"signatures":["standard","standard_ed25519","template"],
			"signature_template":{"header":"X-Acme-Signature"},"ordering":"key","ordering_skip_after":3,"auto_disable_after_seconds":3600,"status":"paused"}`)
		if len(got.Signatures) != 3 || got.SignatureTemplate == nil || got.TLS != nil || got.Auth == nil || got.Ordering != webhook.OrderingKey ||
			*got.OrderingSkipAfter != 3 || *got.AutoDisableAfterSeconds != 3600 || got.State != webhook.StatePaused {
			t.Errorf("changed to %+v", got)
		}
		// Of one that is refused nothing is changed, and each of its faults is named: a
		// header where a signature is, and a number without an order.
		faults := refused(t, b, webhook.CodeInvalid, "PATCH", path,
			`{"headers":{"x-acme-signature":"mine"},"auth":null,"ordering":null,"auto_disable_after_seconds":null,"description":"d"}`)
		if len(faults) != 2 || !strings.HasPrefix(faults[0], "/headers/x-acme-signature: ") || !strings.HasPrefix(faults[1], "/ordering_skip_after: ") {
			t.Errorf("faults are %q", faults)
		}
		if w := stored(t, b, id); w.Auth == nil || w.Description != "" || w.Ordering != webhook.OrderingKey || w.Headers["X-Key"].Reveal() != "hidden-header" {
			t.Errorf("a change that was refused left %+v", w)
		}
		got = update(t, id, `{"headers":{"x-key":"***"},"auth":null,"signatures":null,"signature_template":null,"ordering":null,"ordering_skip_after":null,
			"auto_disable_after_seconds":null,"status":null}`)
		w := stored(t, b, id)
		if !slices.Equal(got.Signatures, []webhook.Scheme{webhook.SchemeStandard}) || got.SignatureTemplate != nil || got.Ordering != webhook.OrderingNone ||
			got.OrderingSkipAfter != nil || got.AutoDisableAfterSeconds != nil || got.State != webhook.StateActive || w.Auth != nil ||
			len(w.Headers) != 1 || w.Headers["x-key"].Reveal() != "hidden-header" {
			t.Errorf("put back to %+v, stored %+v", got, w)
		}
	})

	t.Run("TakesAwayWhatIsNull", func(t *testing.T) {
		t.Parallel()
		id := secretHook(t, b, ca, basicAuth)
		got := update(t, id, `{"headers":null,"auth":null,"tls":null}`)
		_, row := inTheOpen(t, b, id)
		if w := stored(t, b, id); w.Sealed != nil || got.Auth != nil || got.TLS != nil || strings.Contains(row, "hidden") {
			t.Errorf("left %+v, %s", w, row)
		}
	})

	t.Run("OpensTheGateThatTheOldOnesClosedButNoOther", func(t *testing.T) {
		t.Parallel()
		id := secretHook(t, b, ca, oauth2Auth)
		closeGate(t, id)
		update(t, id, `{"description":"d"}`)
		update(t, id, body(t, map[string]any{"auth": oauth2Auth}))
		if n := gates(t, id); n != 1 {
			t.Fatalf("%d gates after changes of nothing", n)
		}
		update(t, id, body(t, map[string]any{"auth": basicAuth}))
		if n := gates(t, id); n != 0 {
			t.Errorf("%d gates after a change of auth", n)
		}
	})

	t.Run("CountsTwoAtATime", func(t *testing.T) {
		t.Parallel()
		id := secretHook(t, b, ca, basicAuth)
		var all sync.WaitGroup
		for _, change := range []string{`{"headers":{"X-Key":"changed"}}`, `{"auth":{"type":"bearer","token":"changed"}}`, `{"tls":null}`} {
			all.Go(func() {
				if _, err := b.call(t, "PATCH", "/v1/webhooks/"+id.String(), change); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if w := stored(t, b, id); w.Headers["X-Key"].Reveal() != "changed" || w.Auth.Type != webhook.AuthBearer || w.TLS != nil {
			t.Errorf("stored %+v", w)
		}
	})

	t.Run("SaysWhereItIsWrong", func(t *testing.T) {
		t.Parallel()
		plain := create(t, b, `{"tenant":"acme","url":"https://example.com"}`).ID
		full := secretHook(t, b, ca, oauth2Auth)
		old := ca.IssueFor(t, "old", time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
		for name, tc := range map[string]struct {
			id     webhook.ID
			change map[string]any
			want   []string
		}{
			"NothingStored": {
				plain,
				map[string]any{
					"headers": map[string]any{"X-Key": "***"}, "auth": map[string]any{"type": "bearer", "token": "***"}, "tls": map[string]any{"ca_certificates": "***"},
				},
				[]string{"/auth/token", "/headers/X-Key", "/tls/ca_certificates"},
			},
			"OursAndHopByHop": {
				plain,
				map[string]any{"headers": map[string]any{
					"webhook-id": "1", "Fairhook-X": "1", "host": "h", "content-length": "1", "user-agent": "x", "Connection": "X-Key", "proxy-x": "1",
					"TE": "trailers", "Keep-Alive": "1", "Upgrade": "h2c", "Content-Type": "a/b",
				}},
				[]string{
					"/headers/Connection", "/headers/Content-Type", "/headers/Fairhook-X", "/headers/Keep-Alive", "/headers/TE",
					"/headers/Upgrade", "/headers/content-length", "/headers/host", "/headers/proxy-x", "/headers/user-agent",
					"/headers/webhook-id",
				},
			},
			"AnAuthorizationOfItsOwn": {full, map[string]any{"headers": map[string]any{"authorization": "x"}}, []string{"/headers/authorization"}},
			"NoType":                  {plain, map[string]any{"auth": map[string]any{"token": "x"}}, []string{"/auth/type"}},
			"NoObject":                {plain, map[string]any{"auth": "Bearer x", "tls": []int{}}, []string{"/auth", "/tls"}},
			"AnUnknownField":          {plain, map[string]any{"auth": map[string]any{"type": "bearer", "tokn": "x"}}, []string{"/auth/tokn"}},
			"AFieldOfAnotherType":     {plain, map[string]any{"auth": map[string]any{"type": "bearer", "token": "x", "password": "y"}}, []string{"/auth/password"}},
			"ANumber":                 {plain, map[string]any{"auth": map[string]any{"type": "bearer", "token": 5}}, []string{"/auth/token"}},
			"APrivateTokenURL": {
				plain,
				map[string]any{"auth": map[string]any{"type": "oauth2", "token_url": "http://169.254.169.254/", "client_id": "a", "client_secret": "b"}},
				[]string{"/auth/token_url"},
			},
			"ASecretKeptForAnotherTokenURL": {
				full,
				map[string]any{"auth": map[string]any{"type": "oauth2", "token_url": "https://evil.example/", "client_id": "me", "client_secret": "***"}},
				[]string{"/auth/client_secret"},
			},
			"AnExpiredCertificate": {
				plain, map[string]any{"tls": map[string]any{"client_certificate": old.Certificate, "client_key": old.Key}}, []string{"/tls/client_certificate"},
			},
			"AnotherKey":     {full, map[string]any{"tls": map[string]any{"client_certificate": "***", "client_key": old.Key}}, []string{"/tls/client_key"}},
			"NoCertificate":  {plain, map[string]any{"tls": map[string]any{"ca_certificates": "x"}}, []string{"/tls/ca_certificates"}},
			"NothingAtAll":   {plain, map[string]any{"tls": map[string]any{}}, []string{"/tls"}},
			"WhatIsToldOnly": {full, map[string]any{"tls": map[string]any{"server_name": "a", "certificate": nil}}, []string{"/tls/certificate"}},
			"OverPlainHTTP":  {full, map[string]any{"url": "http://example.com"}, []string{"/tls"}},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				before := stored(t, b, tc.id)
				change := body(t, tc.change)
				got := []string{}
				for _, fault := range refused(t, b, webhook.CodeInvalid, "PATCH", "/v1/webhooks/"+tc.id.String(), change) {
					pointer, detail, _ := strings.Cut(fault, ": ")
					got = append(got, pointer)
					if strings.Contains(detail, "MII") || strings.Contains(detail, "hidden") {
						t.Errorf("the fault repeats what was given: %s", detail)
					}
				}
				if !slices.Equal(got, tc.want) {
					t.Errorf("faults at %q, want %q", got, tc.want)
				}
				if after := stored(t, b, tc.id); !after.UpdatedAt.Equal(before.UpdatedAt) {
					t.Error("something was stored")
				}
			})
		}
	})
}

// In a rollout there are dispatchers that cannot read sealed headers. They go on
// sending those in the open.
func TestHeadersStayInTheOpenWhileADispatcherNeedsThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	beat := func(id string, reads bool, age string) {
		t.Helper()
		_, err := b.db.Exec(t.Context(), `
			INSERT INTO fairhook.instances (id, role, version, host, reads_sealed_headers, heartbeat_at) VALUES ($1, 'dispatcher', 'x', 'h', $2, now() - $3::interval)`,
			id, reads, age)
		if err != nil {
			t.Fatal(err)
		}
	}
	beat("new", true, "0")
	beat("long dead", false, "1 hour")
	sealed := create(t, b, `{"tenant":"acme","url":"https://example.com","headers":{"X-Key":"hidden-header"}}`).ID
	if headers, row := inTheOpen(t, b, sealed); headers != "{}" || strings.Contains(row, "hidden") {
		t.Fatalf("with no dispatcher of the release before it is stored as %s", row)
	}
	beat("old", false, "0")
	w := create(t, b, body(t, map[string]any{
		"tenant": "acme", "url": "https://example.com", "headers": map[string]any{"X-Key": "for all"}, "auth": basicAuth,
	}))
	if headers, row := inTheOpen(t, b, w.ID); headers != `{"X-Key": "for all"}` || strings.Contains(row, "hidden") {
		t.Errorf("stored as %s", row)
	}
	if got := stored(t, b, w.ID); got.Headers["X-Key"].Reveal() != "for all" || got.Auth == nil || w.Headers["X-Key"].Reveal() != webhook.Masked {
		t.Errorf("read %+v", got)
	}
	// Nor does a change of something else close them again.
	must[webhookAnswer](t, b, http.StatusOK, "PATCH", "/v1/webhooks/"+w.ID.String(), `{"description":"d","headers":{"X-Key":"***"}}`)
	if headers, _ := inTheOpen(t, b, w.ID); headers != `{"X-Key": "for all"}` {
		t.Errorf("after a change stored as %s", headers)
	}
	must[webhookAnswer](t, b, http.StatusOK, "PATCH", "/v1/webhooks/"+sealed.String(), `{"headers":{"X-Key":"again open"}}`)
	if headers, _ := inTheOpen(t, b, sealed); headers != `{"X-Key": "again open"}` {
		t.Errorf("a change is stored as %s", headers)
	}
	if got := stored(t, b, sealed); got.Headers["X-Key"].Reveal() != "again open" || got.Sealed != nil {
		t.Errorf("read %+v", got)
	}
}
