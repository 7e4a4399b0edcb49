package client_test

import (
	"net/http"
	"testing"

	"github.com/fairhook/fairhook/pkg/client"
)

func TestInstancesAreListedPageAfterPage(t *testing.T) {
	t.Parallel()
	fake := newFake(t,
		answer(http.StatusOK, `{"data":[{"id":"a","role":"dispatcher","version":"1","host":"h","started_at":"2026-01-02T03:04:05Z",
			"heartbeat_at":"2026-01-02T03:04:07Z","capacity":1000,"in_flight":3,"draining":true,"leader":true,"status":"alive"}],"next_cursor":"next"}`),
		answer(http.StatusOK, `{"data":[{"id":"b","role":"ingest","status":"stale"}],"next_cursor":null}`))
	var got []client.Instance
	for i, err := range dial(t, fake).Instances(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, *i)
	}
	if len(got) != 2 || fake.got()[0].path != "/v1/instances" || fake.got()[0].query != "limit=1" || fake.got()[1].query != "cursor=next&limit=1" {
		t.Fatalf("listed %+v, asked %+v", got, fake.got())
	}
	if a := got[0]; a.Role != "dispatcher" || a.HeartbeatAt.Sub(a.StartedAt).Seconds() != 2 || a.Capacity != 1000 || a.InFlight != 3 ||
		!a.Draining || !a.Leader || a.Status != client.InstanceAlive || got[1].Status != client.InstanceStale {
		t.Errorf("listed %+v", got)
	}
}
