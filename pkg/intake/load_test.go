package intake

import "testing"

func TestLoadTellsHowBusyAnIntakeIs(t *testing.T) {
	t.Parallel()
	b := setup(t, func(cfg *Config) { cfg.BufferEvents = 4 })
	answer := b.queue(item())
	if l := b.Load(); l.Commits != 0 || l.Waits != 0 || l.Fill != 0.25 {
		t.Errorf("with one of four in the buffer: %+v", l)
	}
	b.start()
	b.accepted(answer)
	l := b.Load()
	if l.Commits != 1 || l.CommitTime <= 0 || l.Waits != 1 || l.WaitTime <= 0 || l.Fill != 0 {
		t.Errorf("after one commit: %+v", l)
	}
}
