package ingest

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestBodiesThatFindNoMemory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const body = `{"tenant":"acme","type":"a","payload":1}`
	all := b.server.bodies.free.Load()
	b.server.bodies.free.Store(int64(len(body)) - 1)
	_, header := refused(t, b, http.StatusServiceUnavailable, "unavailable", "POST", "/v1/events", body)
	if header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After is %q", header.Get("Retry-After"))
	}
	if free := b.server.bodies.free.Load(); free != int64(len(body))-1 {
		t.Errorf("%d bytes are free after a refusal", free)
	}
	b.server.bodies.free.Store(all)
	want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body)
	if free := b.server.bodies.free.Load(); free != all {
		t.Errorf("%d bytes are free after all is over, of %d", free, all)
	}

	// What was read is held until the end, not until the next read.
	budget := newBodyBudget(1)
	budget.free.Store(10)
	counted := &countedBody{ReadCloser: io.NopCloser(strings.NewReader("0123456789")), budget: budget}
	if _, err := io.ReadAll(counted); err != nil || budget.free.Load() != 0 {
		t.Errorf("ReadAll: %v, with %d bytes free", err, budget.free.Load())
	}
	counted.release()
	if budget.free.Load() != 10 {
		t.Errorf("%d bytes free after the release", budget.free.Load())
	}
}
