package reseal_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/reseal"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func key(t *testing.T, fill byte) seal.Key {
	t.Helper()
	k, err := seal.ParseKey(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, seal.KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// bundle is a database with a webhook.
type bundle struct {
	t    *testing.T
	db   *pgxpool.Pool
	hook webhook.ID
	next int64
}

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{t: t, db: pgtest.DB(t), hook: webhook.NewID(time.Now())}
	w := &webhook.Webhook{
		ID: b.hook, Tenant: "acme", URL: "https://example.com", EventTypes: []string{"*"}, State: webhook.StateActive,
		Headers: map[string]webhook.Secret{}, RetrySchedule: []int{}, AllowedCIDRs: []string{},
	}
	if err := postgres.InsertWebhook(t.Context(), b.db, w); err != nil {
		t.Fatal(err)
	}
	return b
}

// add stores n secrets of the webhook, sealed by the box.
func (b *bundle) add(box *seal.Box, n int) (ids []webhook.ID) {
	b.t.Helper()
	for range n {
		b.next++
		s := &postgres.Secret{ID: webhook.NewID(time.UnixMilli(b.next)), Sealed: box.Seal([]byte("secret"), b.hook.String())}
		if err := postgres.InsertSecret(b.t.Context(), b.db, b.hook, s); err != nil {
			b.t.Fatal(err)
		}
		ids = append(ids, s.ID)
	}
	return ids
}

// opens counts the webhook's secrets that the box opens.
func (b *bundle) opens(box *seal.Box) (n int) {
	b.t.Helper()
	secrets, err := postgres.Secrets(b.t.Context(), b.db, b.hook)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range secrets {
		if text, err := box.Open(s.Sealed, b.hook.String()); err == nil && string(text) == "secret" {
			n++
		}
	}
	return n
}

func total(counts []reseal.Count) (resealed, failed int) {
	for _, c := range counts {
		resealed, failed = resealed+c.Resealed, failed+c.Failed
	}
	return resealed, failed
}

func TestCheck(t *testing.T) {
	t.Parallel()
	one, two := seal.New(key(t, 1)), seal.New(key(t, 2))

	t.Run("TakesAnyKeyWhileNothingIsSealed", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for _, box := range []*seal.Box{one, two} {
			if err := reseal.Check(t.Context(), b.db, box); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("RefusesAKeyThatOpensNotEverything", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.add(one, 2)
		b.add(two, 1)
		_, err := b.db.Exec(t.Context(), `
			WITH k AS (
				INSERT INTO fairhook.api_keys (id, hash, hint, description, scopes, allowed_cidrs, require_signature)
				VALUES (gen_random_uuid(), 'h', '', '', '{}', '{}', true) RETURNING id)
			INSERT INTO fairhook.api_key_secrets (id, key_id, sealed) SELECT gen_random_uuid(), id, $1 FROM k`, one.Seal([]byte("x"), "x"))
		if err != nil {
			t.Fatal(err)
		}
		var missing *reseal.MissingKeyError
		if err := reseal.Check(t.Context(), b.db, two); !errors.As(err, &missing) || missing.Values != 3 {
			t.Fatalf("got %v, want the three of the other key", err)
		}
		text := missing.Error()
		for _, want := range []string{"3 secrets", one.Current().String(), "FAIRHOOK_OLD_ENCRYPTION_KEYS", "migrate reseal", "docs/encryption-keys.md"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q does not say %q", text, want)
			}
		}
		if strings.Contains(text, two.Current().String()) {
			t.Errorf("%q names the key that was given", text)
		}
		if err := reseal.Check(t.Context(), b.db, seal.New(key(t, 2), key(t, 1))); err != nil {
			t.Errorf("with both keys: %v", err)
		}
	})

	t.Run("RefusesWhatIsNoSealedText", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		ids := b.add(one, 1)
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhook_secrets SET sealed = 'x' WHERE id = $1`, ids[0]); err != nil {
			t.Fatal(err)
		}
		if err := reseal.Check(t.Context(), b.db, one); err == nil || !strings.Contains(err.Error(), "unknown") {
			t.Errorf("got %v", err)
		}
	})
}

func TestRun(t *testing.T) {
	t.Parallel()
	one, two := seal.New(key(t, 1)), seal.New(key(t, 2))
	ring := seal.New(key(t, 2), key(t, 1))

	t.Run("SealsEverythingAnewInBatchesAndOnlyOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.add(one, 230)
		b.add(two, 3)
		counts, err := reseal.Run(t.Context(), b.db, ring)
		if resealed, failed := total(counts); err != nil || resealed != 230 || failed != 0 {
			t.Errorf("%d sealed anew, %d failed, %v", resealed, failed, err)
		}
		if n := b.opens(two); n != 233 {
			t.Errorf("the new key alone opens %d of 233", n)
		}
		counts, err = reseal.Run(t.Context(), b.db, ring)
		if resealed, failed := total(counts); err != nil || resealed != 0 || failed != 0 {
			t.Errorf("again: %d sealed anew, %d failed, %v", resealed, failed, err)
		}
	})

	t.Run("GoesOnWhereItWasBrokenOff", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.add(one, 250)
		broken := &breaking{Pool: b.db, after: 1}
		counts, err := reseal.Run(t.Context(), broken, ring)
		if resealed, _ := total(counts); !errors.Is(err, errBroken) || resealed != 100 {
			t.Fatalf("%d sealed anew, %v; want it broken off after the first 100", resealed, err)
		}
		if n := b.opens(ring); n != 250 {
			t.Errorf("in between %d of 250 open with both keys", n)
		}
		counts, err = reseal.Run(t.Context(), b.db, ring)
		if resealed, _ := total(counts); err != nil || resealed != 150 {
			t.Errorf("%d sealed anew, %v; want the other 150", resealed, err)
		}
	})

	t.Run("NamesWhatItCannotOpenAndDoesTheRest", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.add(one, 2)
		lost := b.add(seal.New(key(t, 3)), 1)[0]
		b.add(one, 2)
		counts, err := reseal.Run(t.Context(), b.db, ring)
		if resealed, failed := total(counts); resealed != 4 || failed != 1 {
			t.Errorf("%d sealed anew, %d failed", resealed, failed)
		}
		if !errors.Is(err, seal.ErrWrongKey) || !strings.Contains(err.Error(), lost.String()) {
			t.Errorf("got %v, want ErrWrongKey for %s", err, lost)
		}
	})

	t.Run("WaitsForAChangeUnderWayWithoutHoldingAnythingUp", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		ids := b.add(one, 3)
		tx, err := b.db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		if _, err := tx.Exec(t.Context(), `UPDATE fairhook.webhook_secrets SET expires_at = NULL WHERE id = $1`, ids[1]); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := reseal.Run(t.Context(), b.db, ring)
			done <- err
		}()
		deadline := time.Now().Add(30 * time.Second)
		for b.opens(two) != 2 { // the others are done meanwhile
			if time.Now().After(deadline) {
				t.Fatal("it does not pass over the locked one")
			}
		}
		// What it has done it holds no locks on.
		if _, err := tx.Exec(t.Context(), `UPDATE fairhook.webhook_secrets SET expires_at = NULL`); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n := b.opens(two); n != 3 {
			t.Errorf("%d of 3 are sealed anew", n)
		}
	})
}

var errBroken = errors.New("broken off")

// breaking is a database that lets so many transactions begin.
type breaking struct {
	*pgxpool.Pool
	after int
}

func (d *breaking) Begin(ctx context.Context) (pgx.Tx, error) {
	if d.after--; d.after < 0 {
		return nil, errBroken
	}
	return d.Pool.Begin(ctx)
}
