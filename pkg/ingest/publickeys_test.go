package ingest

import (
	"net/http"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestPublicKeysNeedNoAPIKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/webhooks/" + newWebhook(t, b, "acme", `,"signatures":["standard_ed25519"]`).ID.String() + "/public-keys"
	for _, authorization := range []string{"", "Bearer wrong", "Basic eDp5"} {
		if a := b.request(t, "GET", path, "", "Authorization", authorization); a.status != http.StatusOK || a.header.Get("ETag") == "" {
			t.Errorf("with %q it answers %d %s", authorization, a.status, a.body)
		}
	}
	a := b.request(t, "GET", path, "", "Authorization", "")
	again := b.request(t, "GET", path, "", "Authorization", "", "If-None-Match", a.header.Get("ETag"))
	if again.status != http.StatusNotModified || len(again.body) != 0 {
		t.Errorf("with its ETag it answers %d %s", again.status, again.body)
	}

	// Nothing else about it, and nothing with another method, does without.
	for _, call := range [][2]string{{"POST", path}, {"DELETE", path}, {"GET", path + "/x"}, {"GET", "/v1/webhooks/x"}} {
		refused(t, b, http.StatusUnauthorized, "unauthorized", call[0], call[1], "", "Authorization", "")
	}
	plain := newWebhook(t, b, "acme", "").ID
	for _, id := range []string{plain.String(), webhook.NewID(time.Now()).String(), "nonsense"} {
		refused(t, b, http.StatusNotFound, "not-found", "GET", "/v1/webhooks/"+id+"/public-keys", "", "Authorization", "")
	}
}
