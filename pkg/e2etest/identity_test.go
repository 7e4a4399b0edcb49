package e2etest

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook/certtest"
)

// echo answers with all that it got, as some receivers do when they complain.
func echo(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(status)
		for name, values := range r.Header {
			if name == "Authorization" || name == "X-Api-Key" {
				fmt.Fprintf(w, "%s: %s\n", name, values[0])
			}
		}
		_, _ = w.Write(body)
	}
}

// TestCredentialsAreNeverShownOrLogged gives webhooks every kind of secret, lets
// their deliveries fail in every way that has to do with them, and looks for the
// secrets in all that Fairhook says and stores.
func TestCredentialsAreNeverShownOrLogged(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest, dispatcher := s.run("ingest"), s.run("dispatcher")
	ingest.ready()
	dispatcher.ready()

	ca := certtest.New(t, "ca")
	pair, stranger := ca.Issue(t, "client"), certtest.New(t, "other").Issue(t, "stranger")
	secrets := map[string]string{
		"header": "header-s3cret-value", "password": "pass-s3cret-word", "bearer": "bearer-s3cret-token",
		"client secret": "client-s3cret", "access token": "access-s3cret-token", "refused client secret": "refused-s3cret",
		"client key": strings.Split(pair.Key, "\n")[1], "client certificate": strings.Split(pair.Certificate, "\n")[1],
		"certificate authority": strings.Split(ca.PEM, "\n")[1], "another client key": strings.Split(stranger.Key, "\n")[1],
		"new header": "rotated-s3cret-value",
	}
	secrets["basic"] = base64.StdEncoding.EncodeToString([]byte("shop:" + secrets["password"]))

	receiver := httptest.NewServer(echo(http.StatusBadRequest))
	t.Cleanup(receiver.Close)
	secure := httptest.NewUnstartedServer(echo(http.StatusUnauthorized))
	secure.TLS = &tls.Config{
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(), Certificates: []tls.Certificate{ca.Issue(t, "server").TLS},
	}
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body), secrets["refused client secret"]) {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error":"invalid_client","error_description":%q}`, body)
			return
		}
		if !strings.Contains(string(body), secrets["client secret"]) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write(body)
			return
		}
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer"}`, secrets["access token"])
	}))
	t.Cleanup(tokens.Close)

	var said bytes.Buffer // all that the API answers
	call := func(status int, method, path string, body any) (id string) {
		t.Helper()
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		if body == nil {
			text = nil
		}
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+ingest.addr+path, bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+bootstrap)
		if body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		said.Write(answer)
		if resp.StatusCode != status {
			t.Fatalf("%s %s: %d, want %d: %s", method, path, resp.StatusCode, status, answer)
		}
		var made struct {
			ID string `json:"id"`
		}
		_ = json.Unmarshal(answer, &made) // of lists there is none
		return made.ID
	}
	type m = map[string]any
	oauth2 := func(secret string) m {
		return m{"type": "oauth2", "token_url": tokens.URL, "client_id": "me", "client_secret": secret, "auth_style": "body"}
	}
	identity := func(key certtest.Pair) m {
		return m{"client_certificate": key.Certificate, "client_key": key.Key, "ca_certificates": ca.PEM}
	}
	reasons := map[string]string{} // what each webhook's attempts end with
	create := func(reason, url string, more m) string {
		t.Helper()
		hook := m{
			"tenant": "acme", "url": url, "headers": m{"X-Api-Key": secrets["header"]}, "retry_schedule_seconds": []int{1}, "timeout_seconds": 5,
		}
		for name, value := range more {
			hook[name] = value
		}
		id := call(http.StatusCreated, "POST", "/v1/webhooks", hook)
		reasons[id] = reason
		return id
	}
	create("client_error", receiver.URL, m{"auth": m{"type": "basic", "username": "shop", "password": secrets["password"]}})
	create("client_error", receiver.URL, m{"auth": m{"type": "bearer", "token": secrets["bearer"]}})
	create("client_error", secure.URL, m{"auth": oauth2(secrets["client secret"]), "tls": identity(pair)})
	create("auth_rejected", receiver.URL, m{"auth": oauth2(secrets["refused client secret"])})
	create("auth_unavailable", receiver.URL, m{"auth": oauth2("unknown to it")})
	first := create("tls", secure.URL, m{"auth": m{"type": "bearer", "token": secrets["bearer"]}, "tls": identity(stranger)})

	for id := range reasons {
		call(http.StatusAccepted, "POST", "/v1/events", m{"webhook_id": id, "type": "a", "payload": 1})
		call(http.StatusOK, "GET", "/v1/webhooks/"+id, nil)
	}
	for id, reason := range reasons {
		eventually(t, "the first attempt of each is on record as "+reason, func() bool {
			return s.count(`SELECT count(*) FROM fairhook.attempts WHERE webhook_id = $1 AND reason = $2`, id, reason) > 0
		})
	}
	for reason, most := range map[string]int{"client_error": 3, "auth_rejected": 1, "tls": 1} {
		eventually(t, "deliveries have ended as "+reason, func() bool {
			return s.count(`SELECT count(DISTINCT webhook_id) FROM fairhook.attempts WHERE status = 'exhausted' AND reason = $1`, reason) == most
		})
	}

	// Changes, and requests that are refused for what is in them.
	path := "/v1/webhooks/" + first
	call(http.StatusOK, "PATCH", path, m{"headers": m{"X-Api-Key": "***", "X-New": secrets["new header"]}})
	call(http.StatusUnprocessableEntity, "PATCH", path, m{"auth": m{"type": "bearer", "token": secrets["bearer"] + " and more"}})
	call(http.StatusUnprocessableEntity, "PATCH", path, m{"auth": m{"type": secrets["bearer"], "token": 1, "tokn": "x"}})
	call(http.StatusUnprocessableEntity, "PATCH", path, m{"headers": m{"X-Bad": secrets["header"] + "\n"}})
	call(http.StatusUnprocessableEntity, "PATCH", path, m{"tls": m{"client_certificate": pair.Certificate, "client_key": stranger.Key}})
	call(http.StatusUnprocessableEntity, "PATCH", path, m{"tls": m{"client_certificate": pair.Key, "client_key": pair.Certificate}})
	call(http.StatusBadRequest, "PATCH", path, []string{secrets["header"]})
	call(http.StatusOK, "GET", "/v1/webhooks?limit=100", nil)
	call(http.StatusOK, "GET", "/v1/deliveries", nil)
	call(http.StatusOK, "POST", path+"/pause", nil)
	call(http.StatusOK, "POST", path+"/resume", nil)
	rows, err := s.database.Pool.Query(t.Context(), `SELECT DISTINCT event_id::text FROM fairhook.attempts`)
	if err != nil {
		t.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range events {
		call(http.StatusOK, "GET", "/v1/events/"+event, nil)
		call(http.StatusOK, "GET", "/v1/events/"+event+"/attempts", nil)
	}

	places := map[string]string{
		"the API's answers": said.String(), "ingest's log": ingest.output(), "the dispatcher's log": dispatcher.output(),
		"ingest's metrics": s.get(ingest, "/metrics"), "the dispatcher's metrics": s.get(dispatcher, "/metrics"),
	}
	for _, table := range s.tables() {
		places["the table "+table] = s.contents(table)
	}
	if !strings.Contains(places["the table fairhook.attempts"], "***") || !strings.Contains(places["the table fairhook.webhook_credentials"], `\x`) {
		t.Error("no receiver's answer was masked, or there are no credentials: the test looks in the wrong place")
	}
	if !strings.Contains(places["the dispatcher's log"], "auth_rejected") {
		t.Error("the dispatcher does not log at debug: the test looks in the wrong place")
	}
	for place, text := range places {
		for what, secret := range secrets {
			if strings.Contains(text, secret) || strings.Contains(text, hex.EncodeToString([]byte(secret))) {
				t.Errorf("%s: the %s is there", place, what)
			}
		}
	}
}

// tables are those of the schema that have rows of their own.
func (s *stack) tables() []string {
	s.t.Helper()
	rows, err := s.database.Pool.Query(s.t.Context(), `
		SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'fairhook' AND c.relkind IN ('r', 'p')`)
	if err != nil {
		s.t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.t.Fatal(err)
	}
	return tables
}

// contents are a table's rows as text, bytes in hexadecimal.
func (s *stack) contents(table string) (text string) {
	s.t.Helper()
	err := s.database.Pool.QueryRow(s.t.Context(), `SELECT coalesce(string_agg(t::text, E'\n'), '') FROM `+table+` t`).Scan(&text)
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}
