package e2etest

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

// resumeWithin is how long after Postgres is back ingest accepts events again, and
// says so.
const resumeWithin = 2 * time.Second * raceFactor

// TestIngestResumesByItselfSoonAfterPostgresIsBack measures from the moment that
// Postgres takes connections to the first 202, and to a /readyz that says yes.
func TestIngestResumesByItselfSoonAfterPostgresIsBack(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	s := stackOn(t, server.URL("fairhook"))
	// With rates, whose limiter must come back too.
	ingest := s.run("ingest", "FAIRHOOK_TENANT_ACCEPT_PER_SECOND=10000").ready()
	post := func() int {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+ingest.addr+"/v1/events", strings.NewReader(`{"tenant":"acme","type":"a","payload":1}`))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+bootstrap)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Errorf("submit: %v", err)
			return 0
		}
		response.Body.Close()
		return response.StatusCode
	}
	ready := func() int {
		response, err := http.Get("http://" + ingest.addr + "/readyz")
		if err != nil {
			t.Errorf("ask for readiness: %v", err)
			return 0
		}
		response.Body.Close()
		return response.StatusCode
	}
	// first is when ask answered so for the first time.
	first := func(status int, ask func() int) time.Time {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(testWait); time.Now().Before(deadline); <-tick.C {
			if ask() == status {
				break
			}
		}
		return time.Now()
	}
	if code := post(); code != http.StatusAccepted {
		t.Fatalf("answered %d before anything happened", code)
	}
	for _, outage := range []struct {
		name string
		end  func()
		// length is how long Postgres is away: pauses that grow have grown by then.
		length time.Duration
	}{
		{"stopped", func() {
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
		}, 6 * time.Second},
		{"crashed", server.Kill, time.Second},
	} {
		outage.end()
		first(http.StatusServiceUnavailable, post)
		first(http.StatusServiceUnavailable, ready)
		for down := time.Now(); time.Since(down) < outage.length; {
			asked := time.Now()
			if code := post(); code != http.StatusServiceUnavailable {
				t.Errorf("answered %d while Postgres was away", code)
			}
			if took := time.Since(asked); took > resumeWithin {
				t.Errorf("refused after %s while Postgres was away", took)
			}
		}
		var (
			asking                   sync.WaitGroup
			back, accepted, readyzOK time.Time
		)
		asking.Go(func() {
			back = first(1, func() int { return connects(t.Context(), server.URL("fairhook")) })
		})
		asking.Go(func() { accepted = first(http.StatusAccepted, post) })
		asking.Go(func() { readyzOK = first(http.StatusOK, ready) })
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		asking.Wait()
		t.Logf("after Postgres %s: accepting %s and ready %s after it was back", outage.name,
			accepted.Sub(back).Round(time.Millisecond), readyzOK.Sub(back).Round(time.Millisecond))
		for what, at := range map[string]time.Time{"accepted an event": accepted, "was ready": readyzOK} {
			if took := at.Sub(back); took > resumeWithin {
				t.Errorf("ingest %s %s after Postgres was back, having %s", what, took, outage.name)
			}
		}
	}
}

// connects is 1 if Postgres takes connections.
func connects(ctx context.Context, url string) int {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `SELECT 1`); err != nil {
		return 0
	}
	return 1
}
