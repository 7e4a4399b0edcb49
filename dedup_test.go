package fairhook_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/client/receiver"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

// documentedDedup is a receiver.Dedup of the statements in docs/receiving.md.
type documentedDedup struct {
	pool                           *pgxpool.Pool
	claim, handled, commit, forget string
}

var _ receiver.Dedup = documentedDedup{}

func newDocumentedDedup(t *testing.T) documentedDedup {
	t.Helper()
	text, err := os.ReadFile("docs/receiving.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "<!-- dedup: a test runs these -->\n```sql\n")
	block, _, ended := strings.Cut(rest, "```\n")
	statements := strings.Split(strings.TrimSpace(block), ";\n")
	if !found || !ended || len(statements) != 5 {
		t.Fatalf("docs/receiving.md has %d statements", len(statements))
	}
	d := documentedDedup{pgtest.Empty(t).Pool, statements[1], statements[2], statements[3], statements[4]}
	if _, err := d.pool.Exec(t.Context(), statements[0]); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d documentedDedup) Claim(ctx context.Context, key, token string, lease time.Duration) (receiver.Claim, error) {
	var is bool
	err := d.pool.QueryRow(ctx, d.claim, key, token, lease.Seconds()).Scan(&is)
	if !errors.Is(err, pgx.ErrNoRows) {
		return receiver.Claimed, err
	}
	err = d.pool.QueryRow(ctx, d.handled, key).Scan(&is)
	switch {
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return 0, err
	case is:
		return receiver.Handled, nil
	}
	return receiver.InProgress, nil
}

func (d documentedDedup) Commit(ctx context.Context, key, _ string, keep time.Duration) error {
	_, err := d.pool.Exec(ctx, d.commit, key, keep.Seconds())
	return err
}

func (d documentedDedup) Release(ctx context.Context, key, token string) error {
	_, err := d.pool.Exec(ctx, d.forget, key, token)
	return err
}

// The statements in docs/receiving.md do what receiver.Dedup asks for.
func TestTheDocumentedDedup(t *testing.T) {
	t.Parallel()
	d := newDocumentedDedup(t)
	ctx := t.Context()
	claim := func(key, token string, lease time.Duration, want receiver.Claim) {
		t.Helper()
		if got, err := d.Claim(ctx, key, token, lease); err != nil || got != want {
			t.Fatalf("claim of %s by %s: got %d, %v; want %d", key, token, got, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	claim("a", "1", time.Hour, receiver.Claimed)
	claim("a", "2", time.Hour, receiver.InProgress)
	must(d.Release(ctx, "a", "2")) // another's
	claim("a", "2", time.Hour, receiver.InProgress)
	must(d.Release(ctx, "a", "1"))
	claim("a", "2", time.Hour, receiver.Claimed)
	must(d.Commit(ctx, "a", "2", time.Hour))
	must(d.Release(ctx, "a", "2"))
	claim("a", "3", time.Hour, receiver.Handled)

	claim("b", "1", -time.Second, receiver.Claimed) // it has run out already
	claim("b", "2", time.Hour, receiver.Claimed)
	must(d.Release(ctx, "b", "1"))
	claim("b", "3", time.Hour, receiver.InProgress)
	must(d.Commit(ctx, "b", "1", time.Hour)) // late, but handled
	claim("b", "3", time.Hour, receiver.Handled)

	must(d.Commit(ctx, "c", "1", -time.Second)) // forgotten already
	claim("c", "2", time.Hour, receiver.Claimed)

	var claims [20]atomic.Int32
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			for i := range claims {
				key, token := fmt.Sprint("of many ", i), fmt.Sprint(worker)
				got, err := d.Claim(ctx, key, token, time.Hour)
				if err != nil {
					t.Error(err)
				}
				if got == receiver.Claimed {
					claims[i].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for i := range claims {
		if n := claims[i].Load(); n != 1 {
			t.Errorf("message %d was claimed %d times", i, n)
		}
	}
}
