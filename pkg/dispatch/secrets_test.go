package dispatch

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/reseal"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// Nobody is told when a secret's time is over: the dispatcher that has it in memory
// must know itself. Its row goes later, with the sweep.
func TestASecretSignsUntilItEndsAndNoLonger(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var (
		mu   sync.Mutex
		seen []int // how many signatures each request had; guarded by mu
	)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, len(strings.Fields(r.Header.Get(signature.HeaderSignature))))
	}))
	defer server.Close()
	hook := b.hook(server.URL)
	old := &postgres.Secret{ID: webhook.NewID(b.clock.Now()), Sealed: b.box.Seal([]byte(signature.NewSecret().Reveal()), hook.ID.String())}
	if err := postgres.InsertSecret(t.Context(), b.db, hook.ID, old); err != nil {
		t.Fatal(err)
	}
	b.start()
	signatures := func() int {
		t.Helper()
		b.ended(b.submit(hook, 1)[0])
		mu.Lock()
		defer mu.Unlock()
		return seen[len(seen)-1]
	}
	if n := signatures(); n != 2 {
		t.Fatalf("%d signatures, want those of both secrets", n)
	}
	if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhook_secrets SET expires_at = now() + interval '1 second' WHERE id = $1`, old.ID); err != nil {
		t.Fatal(err)
	}
	b.eventually("the old secret signs no more", func() bool { return signatures() == 1 })
	if n := b.count(`SELECT count(*) FROM fairhook.webhook_secrets WHERE id = $1 AND expires_at <= now()`, old.ID); n != 1 {
		t.Error("it stopped before its time, or its row is gone")
	}
}

func TestADispatcherDoesNotStartWithAWrongKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.hook("http://127.0.0.1:1/")
	key, err := seal.ParseKey(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, seal.KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = New(t.Context(), b.config(func(c *Config) { c.Box = seal.New(key) }))
	if missing := (*reseal.MissingKeyError)(nil); !errors.As(err, &missing) || missing.Values != 1 {
		t.Errorf("got %v, want a MissingKeyError about one secret", err)
	}
}
