package ingest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// look makes a request past the check against the API's description, which the job view
// is no part of.
func look(t *testing.T, base, method, path string, authorize func(*http.Request)) (status int, header http.Header, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	authorize(req)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

func withPassword(key string) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth("anybody", key) }
}

func TestJobView(t *testing.T) {
	t.Parallel()
	b := setupWith(t, options{key: testKey, jobView: true})
	server := httptest.NewServer(b.server)
	t.Cleanup(server.Close)
	hook := newWebhook(t, b, "acme", "").ID
	want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/webhooks/"+hook.String()+"/events?type=a", "x")

	t.Run("ShowsTheJobsOfALane", func(t *testing.T) {
		t.Parallel()
		if status, _, page := look(t, server.URL, "GET", "/river/", withPassword(testKey)); status != http.StatusOK || !strings.Contains(page, "<html") {
			t.Errorf("the page: %d %.200s", status, page)
		}
		bearer := func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+testKey) }
		status, _, text := look(t, server.URL, "GET", "/river/api/jobs?state=available&queues="+fairqueue.Lane(hook), bearer)
		var jobs struct{ Data []struct{ Queue string } }
		if status != http.StatusOK || json.Unmarshal([]byte(text), &jobs) != nil || len(jobs.Data) != 1 || jobs.Data[0].Queue != fairqueue.Lane(hook) {
			t.Errorf("%d %s; want the job of the webhook", status, text)
		}
	})
	t.Run("ChangesNothing", func(t *testing.T) {
		t.Parallel()
		for _, path := range []string{"/river/api/jobs/delete", "/river/api/jobs/cancel", "/river/api/jobs/retry", "/river"} {
			if status, _, text := look(t, server.URL, "POST", path, withPassword(testKey)); status != http.StatusForbidden {
				t.Errorf("POST %s: %d %s", path, status, text)
			}
		}
	})
	t.Run("IsForAdminsOfAllTenantsOnly", func(t *testing.T) {
		t.Parallel()
		for name, tc := range map[string]struct {
			key    string
			status int
		}{
			"no key":             {"", http.StatusUnauthorized},
			"a wrong key":        {"wrong", http.StatusUnauthorized},
			"a reader's":         {newKey(t, b, "", "", webhook.ScopeRead).Text, http.StatusForbidden},
			"a tenant's admin's": {newKey(t, b, "acme", "", webhook.ScopeAdmin).Text, http.StatusForbidden},
			"an admin's":         {newKey(t, b, "", "", webhook.ScopeAdmin).Text, http.StatusOK},
		} {
			for _, path := range []string{"/river/", "/river/api/jobs?state=available"} {
				authorize := withPassword(tc.key)
				if tc.key == "" {
					authorize = func(*http.Request) {}
				}
				status, header, text := look(t, server.URL, "GET", path, authorize)
				if status != tc.status {
					t.Errorf("%s: GET %s: %d %.200s, want %d", name, path, status, text, tc.status)
				}
				if status == http.StatusUnauthorized && !strings.Contains(strings.Join(header.Values("WWW-Authenticate"), " "), "Basic") {
					t.Errorf("%s: a browser would not ask for a password", name)
				}
			}
		}
	})
	t.Run("TakesNoPasswordAnywhereElse", func(t *testing.T) {
		t.Parallel()
		for _, path := range []string{"/v1/webhooks", "/riverside", "/river/../v1/webhooks"} {
			if status, _, text := look(t, server.URL, "GET", path, withPassword(testKey)); strings.Contains(text, hook.String()) {
				t.Errorf("GET %s: %d %.200s", path, status, text)
			}
		}
	})
	t.Run("IsNotThereUnlessAskedFor", func(t *testing.T) {
		t.Parallel()
		plain := setup(t)
		off := httptest.NewServer(plain.server)
		t.Cleanup(off.Close)
		if status, _, _ := look(t, off.URL, "GET", "/river/", withPassword(testKey)); status != http.StatusNotFound {
			t.Errorf("answered %d", status)
		}
	})
}
