package e2etest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/client"
)

// What is imported from Convoy is signed as Convoy signed it, with the text of the
// secret that the receiver has, and comes with the header that authenticates it.
func TestImportFromConvoyIsSignedAsBefore(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest := s.run("ingest").ready()
	s.run("dispatcher").ready()
	c := s.client(ingest)

	const secret = "jb5uLmqFPHrGVFVZC2BNxWsrI"
	sum := func(content string) string {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(content))
		return hex.EncodeToString(mac.Sum(nil))
	}
	arrived := make(chan string, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got, want := r.Header.Get("X-Convoy-Signature"), sum(string(body))
		if r.URL.Path == "/advanced" {
			timestamp, _, _ := strings.Cut(strings.TrimPrefix(got, "t="), ",")
			want = "t=" + timestamp + ",v1=" + sum(timestamp+","+string(body))
		}
		if got != want {
			t.Errorf("%s is signed with %q, want %q", r.URL.Path, got, want)
		}
		if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
			t.Errorf("%s comes with the authorization %q", r.URL.Path, r.Header.Get("Authorization"))
		}
		arrived <- r.URL.Path
	}))
	defer receiver.Close()

	endpoint := func(id, advanced string) string {
		return `{"uid":"` + id + `","owner_id":"acme","url":"` + receiver.URL + "/" + id + `","name":"Orders","status":"active",
			"secrets":[{"value":"` + secret + `","expires_at":null}],"advanced_signatures":` + advanced + `,"http_timeout":10,
			"authentication":{"type":"basic_auth","basic_auth":{"username":"u","password":"p"}}}`
	}
	subscription := func(endpoint string) string {
		return `{"endpoint_metadata":{"uid":"` + endpoint + `"},"filter_config":{"event_types":["order.paid"]}}`
	}
	file := filepath.Join(t.TempDir(), "convoy.json")
	text := `{"source":"convoy","projects":[{"project":{"uid":"p1","type":"outgoing","config":{"strategy":{"type":"linear","duration":10,"retry_count":3},
		"signature":{"header":"X-Convoy-Signature","versions":[{"hash":"SHA256","encoding":"hex"}]}}},
		"endpoints":[` + endpoint("simple", "false") + "," + endpoint("advanced", "true") + `],
		"subscriptions":[` + subscription("simple") + "," + subscription("advanced") + `]}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, output := s.fairhookImport(ingest, "convoy", file); code != 0 || strings.Count(output, "made  ") != 2 || strings.Contains(output, secret) {
		t.Fatalf("exit code %d, and prints\n%s", code, output)
	}
	if _, err := c.Submit(t.Context(), client.Event{Tenant: "acme", Type: "order.paid", Payload: []byte(`{"order": 4711}`)}); err != nil {
		t.Fatal(err)
	}
	paths := map[string]bool{}
	eventually(t, "both webhooks get the event", func() bool {
		select {
		case path := <-arrived:
			paths[path] = true
		default:
		}
		return len(paths) == 2
	})
}
