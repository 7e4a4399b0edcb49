package dispatch

import (
	"testing"
	"time"
)

// TestHeartbeatLetsOthersSpeakAfterItWasStopped has a whole machine stop for a
// minute: whoever goes on first must not take the others for dead.
func TestHeartbeatLetsOthersSpeakAfterItWasStopped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.start().heartbeat
	h = &heartbeat{db: h.db, share: h.share, queue: h.queue, logger: h.logger, metrics: h.metrics, instance: "first", known: make(chan struct{})}
	h.healthySince, h.lastBeat = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	h.beat(t.Context())
	if h.observed() {
		t.Error("it takes the silence of others for death, and was silent itself")
	}
	h.healthySince = time.Now().Add(-staleAfter)
	h.beat(t.Context())
	if !h.observed() {
		t.Error("it has watched for long enough and does not help")
	}
}
