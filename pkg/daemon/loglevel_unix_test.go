//go:build unix

package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestLogLevelFollowsSignals(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger, level := NewLogger(&out, "warn", "text")
	signals := make(chan os.Signal)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tuneLog(ctx, logger, level, signals) }()
	for range 2 { // each is taken once the one before has been carried out
		signals <- syscall.SIGUSR1
	}
	signals <- syscall.SIGUSR1 // there is nothing below debug
	for range 4 {
		signals <- syscall.SIGUSR2 // nor anything above error
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := level.Level(); got != slog.LevelError {
		t.Errorf("the level is %s, want ERROR", got)
	}
	var seen []string
	for line := range strings.Lines(out.String()) {
		_, after, _ := strings.Cut(line, "log_level=")
		seen = append(seen, strings.TrimSpace(after))
	}
	if got := strings.Join(seen, " "); got != "INFO DEBUG DEBUG INFO WARN ERROR ERROR" {
		t.Errorf("the levels were %s", got)
	}
}
