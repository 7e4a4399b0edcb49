//go:build !unix

package daemon

import (
	"context"
	"log/slog"
)

// TuneLog would change a process's log level while it runs, by signals that this
// operating system does not have.
func TuneLog(*slog.Logger, *slog.LevelVar) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	}
}
