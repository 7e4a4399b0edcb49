package catalog

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func withKeyBox(b *bundle) *bundle {
	b.keyBox = b.box
	return b
}

// key stores an API key and returns its hash.
func (b *bundle) key(edits ...func(*webhook.Key)) (*webhook.Key, webhook.KeyHash) {
	b.t.Helper()
	text := webhook.NewKeyText()
	hash, _ := webhook.HashKeyText(text.Reveal())
	k := &webhook.Key{
		ID: webhook.NewID(time.Now()), Hint: webhook.KeyHint(text), Scopes: []webhook.Scope{webhook.ScopeSubmit}, AllowedCIDRs: []string{},
	}
	for _, edit := range edits {
		edit(k)
	}
	if err := postgres.InsertKey(b.t.Context(), b.db, k, hash); err != nil {
		b.t.Fatal(err)
	}
	return k, hash
}

// keySecret gives a key a new signing secret. An empty life is for ever.
func (b *bundle) keySecret(id webhook.ID, life string) []byte {
	b.t.Helper()
	text := signature.NewSecret().Reveal()
	secret, err := signature.ParseSecret(text)
	if err != nil {
		b.t.Fatal(err)
	}
	b.exec(`INSERT INTO fairhook.api_key_secrets (id, key_id, sealed, expires_at) VALUES ($1, $2, $3, now() + nullif($4, '')::interval)`,
		webhook.NewID(time.Now()), id, b.box.Seal([]byte(text), id.String()), life)
	return secret
}

// settled waits until the catalog has heard of every change so far.
func (b *bundle) settled() *webhook.Webhook {
	b.t.Helper()
	w := b.insert()
	b.notified(change{w.ID, w.Tenant})
	return w
}

// refusal is why a key is not valid; empty if it is.
func (b *bundle) refusal(hash webhook.KeyHash) string {
	b.t.Helper()
	_, err := b.Key(b.t.Context(), hash)
	if err != nil && webhook.ErrorCode(err) != webhook.CodeNotFound {
		b.t.Fatalf("Key: %v", err)
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestKey(t *testing.T) {
	t.Parallel()

	t.Run("AnswersWithWhatItMayDo", func(t *testing.T) {
		t.Parallel()
		b := withKeyBox(setup(t)).start()
		ends := time.Now().Add(time.Hour).Truncate(time.Microsecond)
		k, hash := b.key(func(k *webhook.Key) {
			k.Tenant, k.Scopes, k.ExpiresAt = new("acme"), []webhook.Scope{webhook.ScopeRead, webhook.ScopeSubmit}, &ends
			k.AllowedCIDRs, k.RequireSignature = []string{"::ffff:10.0.0.0/104"}, true
		})
		older, newer := b.keySecret(k.ID, "1 hour"), b.keySecret(k.ID, "")
		b.keySecret(k.ID, "-1 second")
		known, err := b.Key(t.Context(), hash)
		if err != nil {
			t.Fatal(err)
		}
		p := known.Principal
		if p.KeyID != k.ID || *p.Tenant != "acme" || !slices.Equal(p.Scopes, k.Scopes) || !p.ExpiresAt.Equal(ends) ||
			len(p.Networks) != 1 || p.Networks[0].String() != "10.0.0.0/8" || !known.RequireSignature {
			t.Errorf("key is %+v", known)
		}
		if !slices.EqualFunc(known.Secrets, [][]byte{newer, older}, slices.Equal) {
			t.Errorf("%d signing secrets, want the two that have not expired, newest first", len(known.Secrets))
		}
	})
	t.Run("IsAnsweredFromMemoryKnownOrNot", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		_, hash := b.key()
		b.settled()
		unknown := webhook.KeyHash(sha256.Sum256([]byte("made up")))
		if b.refusal(hash) != "" || b.refusal(unknown) != "There is no such API key." {
			t.Fatal("the wrong one is known")
		}
		misses := count(t, b.keys.misses)
		for range 100 {
			if b.refusal(hash) != "" || b.refusal(unknown) == "" {
				t.Fatal("the answer has changed")
			}
		}
		if now := count(t, b.keys.misses); now != misses {
			t.Errorf("%d questions went to the database", now-misses)
		}
	})
	t.Run("IsRefusedSoonAfterItWasRevokedElsewhere", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		for range 5 {
			k, hash := b.key()
			if got := b.refusal(hash); got != "" {
				t.Fatal(got)
			}
			if _, err := postgres.RevokeKey(t.Context(), b.db, k.ID, nil); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			b.eventually("it is refused", func() bool { return b.refusal(hash) != "" })
			// 100 ms is the promise, on a machine that is not busy with other tests.
			if took := time.Since(began); took > StaleAfter {
				t.Errorf("it took %v", took)
			}
			if got := b.refusal(hash); got != "The API key has been revoked." {
				t.Errorf("refused with %q", got)
			}
		}
	})
	t.Run("IsRefusedWithinFiveSecondsWhenNobodyListens", func(t *testing.T) {
		t.Parallel()
		b := setup(t) // not started
		k, hash := b.key()
		if got := b.refusal(hash); got != "" {
			t.Fatal(got)
		}
		if _, err := postgres.RevokeKey(t.Context(), b.db, k.ID, nil); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		b.eventually("it is refused", func() bool { return b.refusal(hash) != "" })
		if took := time.Since(began); took > MaxStale {
			t.Errorf("it took %v", took)
		}
	})
	t.Run("IsKnownAsSoonAsItExists", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		text := webhook.NewKeyText()
		hash, _ := webhook.HashKeyText(text.Reveal())
		if b.refusal(hash) == "" {
			t.Fatal("it is known before")
		}
		k := &webhook.Key{ID: webhook.NewID(time.Now()), Scopes: webhook.Scopes(), AllowedCIDRs: []string{}}
		if err := postgres.InsertKey(t.Context(), b.db, k, hash); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		b.eventually("it is known", func() bool { return b.refusal(hash) == "" })
		if took := time.Since(began); took > unknownLife/2 {
			t.Errorf("it took %v", took)
		}
	})
	t.Run("ExpiresByItself", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		// Long enough for the line below, short enough to wait for.
		k, hash := b.key(func(k *webhook.Key) { k.ExpiresAt = new(time.Now().Add(time.Second)) })
		if got := b.refusal(hash); got != "" {
			t.Fatal(got)
		}
		b.eventually("it is refused", func() bool { return b.refusal(hash) != "" })
		var past bool
		if err := b.db.QueryRow(t.Context(), `SELECT expires_at <= now() FROM fairhook.api_keys WHERE id = $1`, k.ID).Scan(&past); err != nil || !past {
			t.Errorf("it was refused before its time, %v", err)
		}
		if got := b.refusal(hash); got != "The API key has expired." {
			t.Errorf("refused with %q", got)
		}
	})
	t.Run("FollowsTheRotationOfItsSecrets", func(t *testing.T) {
		t.Parallel()
		b := withKeyBox(setup(t)).start()
		k, hash := b.key(func(k *webhook.Key) { k.RequireSignature = true })
		secrets := func() int {
			known, err := b.Key(t.Context(), hash)
			if err != nil {
				t.Fatal(err)
			}
			return len(known.Secrets)
		}
		b.keySecret(k.ID, "")
		b.eventually("there is one secret", func() bool { return secrets() == 1 })
		b.keySecret(k.ID, "1 second")
		b.eventually("there are two", func() bool { return secrets() == 2 })
		b.eventually("the one that ends has ended", func() bool { return secrets() == 1 })
		b.exec(`DELETE FROM fairhook.api_key_secrets`)
		b.eventually("there is none", func() bool { return secrets() == 0 })
	})
	t.Run("IsNotForgottenBecauseItIsUsed", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		k, hash := b.key()
		w := b.settled()
		if got := b.refusal(hash); got != "" {
			t.Fatal(got)
		}
		before := count(t, b.metrics.invalidations)
		if err := postgres.TouchKeys(t.Context(), b.db, []webhook.ID{k.ID}, []time.Time{time.Now()}); err != nil {
			t.Fatal(err)
		}
		b.exec(`UPDATE fairhook.webhooks SET description = 'changed'`)
		b.notified(change{w.ID, w.Tenant})
		if now := count(t, b.metrics.invalidations); now != before+1 {
			t.Errorf("%d invalidations, want that of the webhook alone", now-before)
		}
	})
	t.Run("ThatWasMadeUpTakesNoMoreThanItsShareOfConnections", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		w := b.insert()
		_, hash := b.key()
		b.settled()
		if got := b.refusal(hash); got != "" {
			t.Fatal(got)
		}
		for range maxKeyLoads {
			b.keyLoads <- struct{}{} // lookups that hang
		}
		_, err := b.Key(t.Context(), webhook.KeyHash{1})
		if webhook.ErrorCode(err) != webhook.CodeUnavailable || !strings.Contains(err.Error(), "try again") {
			t.Errorf("one more lookup: %v", err)
		}
		if got := b.refusal(hash); got != "" { // what is known needs none
			t.Error(got)
		}
		b.known(w.ID) // and others are loaded still
		<-b.keyLoads
		if b.refusal(webhook.KeyHash{2}) == "" {
			t.Error("a made-up key is known")
		}
	})
	t.Run("ThatNeedsSignaturesIsOfNoUseWithoutABox", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		_, hash := b.key(func(k *webhook.Key) { k.RequireSignature = true })
		if known, err := b.Key(t.Context(), hash); err == nil || webhook.ErrorCode(err) != "" {
			t.Errorf("key is %+v, %v", known, err)
		}
	})
}

// Not parallel: allocations are counted for the whole process.
func TestAKnownKeyCostsNoAllocation(t *testing.T) {
	b := setup(t).start()
	_, hash := b.key()
	b.settled()
	if got := b.refusal(hash); got != "" {
		t.Fatal(got)
	}
	ctx := context.Background()
	if allocations := testing.AllocsPerRun(100, func() {
		if _, err := b.Key(ctx, hash); err != nil {
			t.Error(err)
		}
	}); allocations > 0 {
		t.Errorf("it costs %v", allocations)
	}
}
