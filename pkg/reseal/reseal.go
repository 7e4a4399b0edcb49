// Package reseal keeps what the database holds sealed in step with the encryption
// keys that processes are given: Check refuses keys that cannot open it, and Run
// seals everything anew under the current one, so that an earlier one can go.
//
// Both go by postgres.SealedColumns. Which keys there are, and when processes get
// them, is up to the operator.
package reseal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// batch is how many values one transaction seals anew: it locks that many secrets
// for as long as that takes, and announces each of them to every process.
const batch = 100

// checkTimeout bounds one Check, which reads tables with a row for each secret.
const checkTimeout = 30 * time.Second

// A MissingKeyError says that something in the database is sealed under a key that
// was not given. Its text says what to do, and is for the operator.
type MissingKeyError struct {
	Values int      // how many values that concerns
	KeyIDs []string // of the keys that are missing
}

func (e *MissingKeyError) Error() string {
	noun := "secrets"
	if e.Values == 1 {
		noun = "secret"
	}
	return fmt.Sprintf("is not the one that the database was used with: %d %s in it cannot be opened, sealed under the key with the id %s. "+
		"Set FAIRHOOK_ENCRYPTION_KEY to the key used so far; or, if it is being replaced, list the one before it in FAIRHOOK_OLD_ENCRYPTION_KEYS "+
		"until \"migrate reseal\" has run (docs/encryption-keys.md)",
		e.Values, noun, strings.Join(e.KeyIDs, ", "))
}

// Check makes sure that the box has the keys of everything that is sealed in the
// database. The error is a *MissingKeyError if it does not. A database in which
// nothing is sealed yet accepts any key.
func Check(ctx context.Context, q postgres.Querier, box *seal.Box) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	missing := &MissingKeyError{}
	for _, column := range postgres.SealedColumns() {
		counts, err := postgres.SealedPrefixes(ctx, q, column, seal.PrefixSize)
		if err != nil {
			return err
		}
		for _, c := range counts {
			if len(c.Prefix) == seal.PrefixSize && box.Holds(seal.Prefix(c.Prefix)) {
				continue
			}
			id := "unknown"
			if len(c.Prefix) == seal.PrefixSize {
				id = seal.Prefix(c.Prefix).String()
			}
			missing.Values += c.Values
			if !slices.Contains(missing.KeyIDs, id) {
				missing.KeyIDs = append(missing.KeyIDs, id)
			}
		}
	}
	if missing.Values > 0 {
		return missing
	}
	return nil
}

// DB is a pool or a connection.
type DB interface {
	postgres.Querier
	postgres.Beginner
}

// Count is what became of the values of one column.
type Count struct {
	Column postgres.SealedColumn
	// Resealed are those that were sealed anew, and Failed those that could not be
	// opened, which stay as they are.
	Resealed, Failed int
}

// Run seals anew, under the box's current key, everything that is sealed under
// another one. It works in small transactions beside live services, and goes on
// where an earlier run was broken off. What it did is returned with an error too;
// one of errors.Is(err, seal.ErrWrongKey) or seal.ErrCorrupt says that some values
// could not be opened, and names them.
//
// When it returns nil, nothing was left that was sealed under another key when it
// came by. Processes that still seal under an earlier key can add to it: it is run
// once all of them have the new one.
func Run(ctx context.Context, db DB, box *seal.Box) ([]Count, error) {
	var (
		counts []Count
		faults []error
	)
	for _, column := range postgres.SealedColumns() {
		count := Count{Column: column}
		failed, err := runColumn(ctx, db, box, &count)
		counts = append(counts, count)
		if err != nil {
			return counts, fmt.Errorf("seal %s anew: %w", column, err)
		}
		faults = append(faults, failed...)
	}
	return counts, errors.Join(faults[:min(len(faults), maxFaults)]...)
}

const (
	// maxFaults is how many values that cannot be opened are named.
	maxFaults = 20
	// busyPause is how long a run waits for values that somebody else is changing.
	busyPause = 50 * time.Millisecond
)

// runColumn goes through a column until nothing is left that can be sealed anew, and
// returns what could not be.
func runColumn(ctx context.Context, db DB, box *seal.Box, count *Count) (failed []error, err error) {
	for {
		if failed, err = pass(ctx, db, box, count); err != nil {
			return nil, err
		}
		count.Failed = len(failed)
		left, err := others(ctx, db, box, count.Column)
		if err != nil || left <= len(failed) {
			return failed, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(busyPause):
		}
	}
}

// others is how many values of a column are sealed under another key than the
// current one.
func others(ctx context.Context, q postgres.Querier, box *seal.Box, column postgres.SealedColumn) (n int, err error) {
	counts, err := postgres.SealedPrefixes(ctx, q, column, seal.PrefixSize)
	current := box.Current()
	for _, c := range counts {
		if !bytes.Equal(c.Prefix, current[:]) {
			n += c.Values
		}
	}
	return n, err
}

// pass goes once through a column, and passes over what somebody else has locked.
func pass(ctx context.Context, db DB, box *seal.Box, count *Count) (failed []error, err error) {
	prefix := box.Current()
	for after, full := (webhook.ID{}), true; full; {
		var resealed []postgres.SealedValue
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			values, err := postgres.LockSealed(ctx, tx, count.Column, prefix[:], after, batch)
			if err != nil {
				return err
			}
			full = len(values) == batch
			for _, v := range values {
				after = v.ID
				plain, err := box.Open(v.Sealed, v.Context)
				if err != nil {
					failed = append(failed, fmt.Errorf("%s %s: %w", count.Column, v.ID, err))
					continue
				}
				v.Sealed = box.Seal(plain, v.Context)
				resealed = append(resealed, v)
			}
			if len(resealed) == 0 {
				return nil
			}
			return postgres.UpdateSealed(ctx, tx, count.Column, resealed)
		})
		if err != nil {
			return nil, err
		}
		count.Resealed += len(resealed)
	}
	return failed, nil
}
