package e2etest

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

// TestServicesStartWithoutTheirDatabase are alive, say that they are not ready,
// refuse in so many words, and need nobody's hand when the database comes.
func TestServicesStartWithoutTheirDatabase(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	s := stackOn(t, server.URL("fairhook"))
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	ingest, dispatcher := s.run("ingest"), s.run("dispatcher")
	status := func(p *process, method, path string) (int, http.Header, map[string]any) {
		request, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		asked := time.Now()
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, nil, nil // not listening yet
		}
		defer response.Body.Close()
		if took := time.Since(asked); took > 2*time.Second {
			t.Errorf("%s %s took %s", method, path, took)
		}
		var body map[string]any
		_ = json.NewDecoder(response.Body).Decode(&body)
		return response.StatusCode, response.Header, body
	}
	for _, p := range []*process{ingest, dispatcher} {
		eventually(t, p.name+" is alive", func() bool {
			code, _, _ := status(p, http.MethodGet, "/livez")
			return code == http.StatusOK
		})
		if code, _, _ := status(p, http.MethodGet, "/readyz"); code != http.StatusServiceUnavailable {
			t.Errorf("%s is ready without its database: %d", p.name, code)
		}
	}
	code, header, problem := status(ingest, http.MethodPost, "/v1/events")
	if code != http.StatusServiceUnavailable || header.Get("Retry-After") == "" || header.Get("X-Request-Id") == "" ||
		header.Get("Content-Type") != "application/problem+json" || problem["request_id"] != header.Get("X-Request-Id") {
		t.Errorf("a submission got %d, %v, %v", code, header, problem)
	}

	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	ingest.ready()
	dispatcher.ready()
	t.Logf("ready %s after the database", time.Since(back).Round(time.Millisecond))
	r := newReceiver(t)
	ids, paths := r.hooks(s.client(ingest), 1)
	book := &ledger{events: map[string]submitted{}}
	book.submit(t, []*client.Client{s.client(ingest)}, ids, paths, 10, mustNot(t))
	eventually(t, "every event has arrived", func() bool { return r.missing(book.events) == 0 })
	r.check(book.events)
}
