package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

// openBytes are the columns of bytes that are not sealed. Whoever adds a column of
// bytes says here or in SealedColumns which of the two it is.
var openBytes = []string{
	"api_keys.hash", "events.payload", "idempotency_keys.fingerprint", "signed_requests.fingerprint",
	"webhook_secrets.public_key",
}

func TestSealedColumnsAreAllThatAreSealed(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	var sealed []string
	for _, c := range postgres.SealedColumns() {
		sealed = append(sealed, c.String())
		if _, err := postgres.SealedPrefixes(t.Context(), db, c, 5); err != nil {
			t.Error(err)
		}
		// Its table has an id to go by, and its context is one that there is.
		if _, err := db.Exec(t.Context(), fmt.Sprintf(`SELECT %s, %s, %s FROM fairhook.%s`, c.Key, c.Context, c.Column, c.Table)); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
	columns := query[[]string](t, db, `
		SELECT array_agg(c.relname || '.' || a.attname ORDER BY c.relname, a.attname)
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
		WHERE c.relnamespace = 'fairhook'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
		  AND a.atttypid IN ('bytea'::regtype, 'bytea[]'::regtype) AND a.attnum > 0 AND NOT a.attisdropped`)
	for _, column := range columns {
		if strings.HasPrefix(column, "river_") {
			continue
		}
		if slices.Contains(sealed, column) == slices.Contains(openBytes, column) {
			t.Errorf("%s is a column of bytes: say in SealedColumns that it is sealed, or here that it is not", column)
		}
	}
	for _, column := range slices.Concat(sealed, openBytes) {
		if !slices.Contains(columns, column) {
			t.Errorf("there is no column %s of bytes", column)
		}
	}
}
