package api_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestInstances(t *testing.T) {
	t.Parallel()

	type page struct {
		Data       []webhook.Instance `json:"data"`
		NextCursor *string            `json:"next_cursor"`
	}
	beat := func(t *testing.T, b *testBundle, beat postgres.Beat) {
		t.Helper()
		if _, err := postgres.WriteBeat(t.Context(), b.db, beat, webhook.StaleAfter); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("ShowWhatRunsAndWhatHasDied", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		beat(t, b, postgres.Beat{ID: "old", Role: webhook.RoleIngest, Version: "1", Host: "a", Capacity: 8192, InFlight: 5})
		beat(t, b, postgres.Beat{ID: "leader", Role: webhook.RoleDispatcher, Version: "2", Host: "b", Capacity: 1000, InFlight: 7, Draining: true})
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.instances SET heartbeat_at = now() - interval '20 s' WHERE id = 'old'`); err != nil {
			t.Fatal(err)
		}
		if _, err := b.db.Exec(t.Context(), `INSERT INTO fairhook.river_leader (leader_id, elected_at, expires_at) VALUES ('leader', now(), now() + interval '15 s')`); err != nil {
			t.Fatal(err)
		}
		got, _ := must[page](t, b, http.StatusOK, "GET", "/v1/instances", "")
		if len(got.Data) != 2 || got.NextCursor != nil {
			t.Fatalf("got %+v", got)
		}
		for i := range got.Data {
			if age := time.Since(got.Data[i].StartedAt); age.Abs() > time.Minute || got.Data[i].HeartbeatAt.IsZero() {
				t.Errorf("instance %s started at %s", got.Data[i].ID, got.Data[i].StartedAt)
			}
			got.Data[i].StartedAt, got.Data[i].HeartbeatAt = time.Time{}, time.Time{}
		}
		want := []webhook.Instance{
			{ID: "leader", Role: webhook.RoleDispatcher, Version: "2", Host: "b", Capacity: 1000, InFlight: 7, Draining: true, Leader: true, Status: webhook.InstanceAlive},
			{ID: "old", Role: webhook.RoleIngest, Version: "1", Host: "a", Capacity: 8192, InFlight: 5, Status: webhook.InstanceStale},
		}
		if got.Data[0] != want[0] || got.Data[1] != want[1] {
			t.Errorf("got %+v, want %+v", got.Data, want)
		}
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.river_leader SET expires_at = now() - interval '1 s'`); err != nil {
			t.Fatal(err)
		}
		if got, _ := must[page](t, b, http.StatusOK, "GET", "/v1/instances", ""); got.Data[0].Leader {
			t.Error("an instance whose lease has ended is shown as the leader")
		}
	})

	t.Run("ComeInPages", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for _, id := range []string{"a", "b", "c"} {
			beat(t, b, postgres.Beat{ID: id, Role: webhook.RoleIngest})
		}
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.instances SET started_at = now()`); err != nil {
			t.Fatal(err) // at one moment, so that the id decides
		}
		var ids []string
		target := "/v1/instances?limit=1"
		for range 3 {
			got, header := must[page](t, b, http.StatusOK, "GET", target, "")
			ids = append(ids, got.Data[0].ID)
			if got.NextCursor == nil {
				break
			}
			if !strings.Contains(header.Get("Link"), `rel="next"`) {
				t.Errorf("Link is %q", header.Get("Link"))
			}
			target = "/v1/instances?limit=1&cursor=" + *got.NextCursor
		}
		if got := strings.Join(ids, ","); got != "c,b,a" {
			t.Errorf("listed %s", got)
		}
	})

	t.Run("RefuseCursorsThatAreNotTheirs", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for _, cursor := range []string{"x", "aw", "aQ", "aX________38A", "aQAAAAAAAAAAAA", "aQAAAAAAAAAACg"} {
			refused(t, b, webhook.CodeMalformed, "GET", "/v1/instances?cursor="+cursor, "")
		}
	})
}
