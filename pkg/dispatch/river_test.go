package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"riverqueue.com/riverui"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// ui is River UI over a dispatcher's client.
type ui struct {
	t   *testing.T
	url string
}

// riverJob is a job as River UI shows it.
type riverJob struct {
	ID      json.Number `json:"id"`
	Args    any         `json:"args"`
	Attempt int         `json:"attempt"`
	Kind    string      `json:"kind"`
	Queue   string      `json:"queue"`
	State   string      `json:"state"`
}

func startUI(t *testing.T, p *process) *ui {
	t.Helper()
	handler, err := riverui.NewHandler(&riverui.HandlerOpts{
		Endpoints: riverui.NewEndpoints(p.client, nil), Logger: slog.New(slog.DiscardHandler), Prefix: "/river",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := handler.Start(ctx); err != nil {
		cancel()
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(func() { server.Close(); cancel() })
	return &ui{t, server.URL + "/river"}
}

// ask calls River UI's API, and decodes the answer unless into is nil.
func (u *ui) ask(method, path, body string, into any) string {
	u.t.Helper()
	req, err := http.NewRequestWithContext(u.t.Context(), method, u.url+path, strings.NewReader(body))
	if err != nil {
		u.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		u.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		u.t.Fatalf("%s %s: %d, %v: %s", method, path, resp.StatusCode, err, answer)
	}
	if into != nil {
		if err := json.Unmarshal(answer, into); err != nil {
			u.t.Fatalf("%s %s: %v: %s", method, path, err, answer)
		}
	}
	return string(answer)
}

// jobs lists the jobs of a lane in a state.
func (u *ui) jobs(state string, lane webhook.ID) []riverJob {
	u.t.Helper()
	var list struct{ Data []riverJob }
	u.ask("GET", "/api/jobs?state="+state+"&queues="+fairqueue.Lane(lane), "", &list)
	return list.Data
}

func TestRiverUI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var status atomic.Int32
	status.Store(500)
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) })
	hanging := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
	exhausted := b.hook(r.URL, func(w *webhook.Webhook) { w.RetrySchedule = []int{1} })
	waiting := b.hook(r.URL, func(w *webhook.Webhook) { w.State = webhook.StatePaused })
	running := b.hook(hanging.URL, func(w *webhook.Webhook) { w.TimeoutSeconds = 100 })
	p := b.start()
	u := startUI(t, p)

	if page := u.ask("GET", "/", "", nil); !strings.Contains(page, "<html") {
		t.Errorf("its page is %q", page)
	}
	// A delivery that was exhausted is listed and shown, and sent again when somebody
	// asks for it there.
	event := b.submit(exhausted, 1)[0]
	b.ended(event)
	var job riverJob
	b.eventually("the exhausted delivery is listed", func() bool {
		list := u.jobs("discarded", exhausted.ID)
		if len(list) == 1 {
			job = list[0]
		}
		return len(list) == 1
	})
	text := u.ask("GET", "/api/jobs/"+job.ID.String(), "", &job)
	if job.Kind != "delivery" || job.Queue != fairqueue.Lane(exhausted.ID) || job.Attempt != 2 || job.State != "discarded" || !strings.Contains(text, event.String()) {
		t.Errorf("shows %s", text)
	}
	status.Store(204)
	u.ask("POST", "/api/jobs/retry", fmt.Sprintf(`{"ids":[%q]}`, job.ID), nil)
	b.eventually("the delivery is sent again", func() bool {
		attempts := b.attempts(event)
		return attempts[len(attempts)-1].Status == webhook.StatusDelivered
	})
	if attempts := b.attempts(event); len(attempts) != 3 || attempts[2].Number != 3 {
		t.Errorf("on record is %+v, want a third attempt", attempts)
	}

	// One that waits, and one that runs, are listed and cancelled, with their end on
	// record.
	for state, hook := range map[string]*webhook.Webhook{"available": waiting, "running": running} {
		event := b.submit(hook, 1)[0]
		b.eventually("a delivery is listed as "+state, func() bool {
			list := u.jobs(state, hook.ID)
			if len(list) == 1 {
				job = list[0]
			}
			return len(list) == 1
		})
		if state == "running" {
			b.eventually("its request is under way", func() bool { return hanging.count() == 1 })
		}
		u.ask("POST", "/api/jobs/cancel", fmt.Sprintf(`{"ids":[%q]}`, job.ID), nil)
		if attempts := b.ended(event); attempts[0].Status != webhook.StatusCancelled || attempts[0].Reason != webhook.ReasonCancelled {
			t.Errorf("a delivery that was %s ended as %+v", state, attempts)
		}
		b.eventually("it is listed as cancelled", func() bool { return len(u.jobs("cancelled", hook.ID)) == 1 })
	}

	var counts map[string]struct{ Count int }
	u.ask("GET", "/api/states", "", &counts)
	if counts["cancelled"].Count != 2 || counts["discarded"].Count != 0 {
		t.Errorf("counts %+v", counts)
	}
	var queues struct{ Data []struct{ Name string } }
	u.ask("GET", "/api/queues", "", &queues)
	if len(queues.Data) != 1 || queues.Data[0].Name != fairqueue.ClientQueue {
		t.Errorf("queues are %+v, want the one that dispatchers work", queues)
	}
}
