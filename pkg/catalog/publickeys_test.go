package catalog

import (
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// keyPair gives a webhook a new key pair and returns its public key as it is
// published. An empty life is for ever.
func (b *bundle) keyPair(id webhook.ID, life string) string {
	b.t.Helper()
	text := signature.NewPrivateKey().Reveal()
	key, err := signature.ParsePrivateKey(text)
	if err != nil {
		b.t.Fatal(err)
	}
	public := key.Public().(ed25519.PublicKey)
	s := &postgres.Secret{
		ID: webhook.NewID(time.Now()), Kind: webhook.SecretEd25519, PublicKey: public, Sealed: b.box.Seal([]byte(text), id.String()),
	}
	if err := postgres.InsertSecret(b.t.Context(), b.db, id, s); err != nil {
		b.t.Fatal(err)
	}
	b.exec(`UPDATE fairhook.webhook_secrets SET expires_at = now() + nullif($2, '')::interval WHERE id = $1`, s.ID, life)
	return signature.PublicKeyText(public)
}

// published is the document of a webhook's public keys; empty if there are none.
func (b *bundle) published(id webhook.ID) string {
	b.t.Helper()
	keys, err := b.PublicKeys(b.t.Context(), id)
	switch {
	case webhook.ErrorCode(err) == webhook.CodeNotFound:
		return ""
	case err != nil:
		b.t.Fatalf("PublicKeys: %v", err)
	}
	return string(keys.Document)
}

func TestPublicKeys(t *testing.T) {
	t.Parallel()
	signed := func(w *webhook.Webhook) { w.Signatures = []webhook.Scheme{webhook.SchemeStandardEd25519} }

	t.Run("AreForgottenWhenTheyChangeAndWhenOneEnds", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		w := b.insert(signed)
		if got := b.published(w.ID); got != "" {
			t.Errorf("published %s", got)
		}
		kept := b.keyPair(w.ID, "")
		b.eventually("the key is published", func() bool { return strings.Contains(b.published(w.ID), kept) })
		ending := b.keyPair(w.ID, "2 seconds")
		b.eventually("both are published", func() bool {
			return strings.Contains(b.published(w.ID), ending) && strings.Contains(b.published(w.ID), kept)
		})
		// Nothing notifies of that.
		b.eventually("one is left", func() bool { return !strings.Contains(b.published(w.ID), ending) })
		if !strings.Contains(b.published(w.ID), kept) {
			t.Error("the other has ended too")
		}
		b.exec(`UPDATE fairhook.webhooks SET signatures = '{standard}'`)
		b.eventually("they are published no more", func() bool { return b.published(w.ID) == "" })
	})

	t.Run("AreNotThoseOfSymmetricSecrets", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		w := b.insert(signed)
		b.secret(w.ID, "")
		if got := b.published(w.ID); got != "" {
			t.Errorf("published %s", got)
		}
	})

	// Anyone may ask, also for webhooks that do not exist: that costs few of the
	// database's connections, and nothing of what others get from memory.
	t.Run("AreLookedUpFewAtATime", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		w := b.insert(signed)
		key := b.keyPair(w.ID, "")
		b.settled()
		if !strings.Contains(b.published(w.ID), key) {
			t.Fatal("the key is not published")
		}
		for range maxPublicLoads {
			b.publicLoads <- struct{}{} // look-ups that hang
		}
		_, err := b.PublicKeys(t.Context(), webhook.NewID(time.Now()))
		if webhook.ErrorCode(err) != webhook.CodeUnavailable {
			t.Errorf("one more look-up: %v", err)
		}
		if !strings.Contains(b.published(w.ID), key) {
			t.Error("what is known is not answered")
		}
		b.known(w.ID) // other look-ups go on
		<-b.publicLoads
		if got := b.published(webhook.NewID(time.Now())); got != "" {
			t.Errorf("published %s", got)
		}
	})
}
