//go:build unix

package daemon

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// moreVerbose and lessVerbose are the next level after one, or the same at the ends.
func moreVerbose(level slog.Level) slog.Level { return max(slog.LevelDebug, level-levelStep) }
func lessVerbose(level slog.Level) slog.Level { return min(slog.LevelError, level+levelStep) }

// levelStep is how far slog's levels are from each other.
const levelStep = slog.LevelInfo - slog.LevelDebug

// TuneLog returns the part of a process that changes its log level while it runs:
// SIGUSR1 has one more level written, SIGUSR2 one less.
func TuneLog(logger *slog.Logger, level *slog.LevelVar) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		signals := make(chan os.Signal, 4)
		signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
		defer signal.Stop(signals)
		return tuneLog(ctx, logger, level, signals)
	}
}

func tuneLog(ctx context.Context, logger *slog.Logger, level *slog.LevelVar, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case got := <-signals:
			next := moreVerbose
			if got == syscall.SIGUSR2 {
				next = lessVerbose
			}
			level.Set(next(level.Level()))
			// At a level that is always written: whoever asked wants to see it.
			logger.Log(ctx, slog.LevelError, "log level changed by a signal", "log_level", level.Level().String())
		}
	}
}
