package intake

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Load is how busy an intake is. All but Fill only ever grow.
type Load struct {
	Commits    uint64        // transactions that ended, in whatever way
	CommitTime time.Duration // of all of them together
	Waits      uint64        // events that a committer took
	WaitTime   time.Duration // that they waited for it, all together
	Fill       float64       // how much of the buffer is in use, by count or by bytes: 0 to 1, or more
}

// Load reads the present load, from the same counters as the metrics.
func (in *Intake) Load() Load {
	var l Load
	l.Commits, l.CommitTime = totals(in.metrics.commitDuration)
	l.Waits, l.WaitTime = totals(in.metrics.waitDuration)
	events, bytes := in.Depth()
	l.Fill = max(float64(events)/float64(in.cfg.BufferEvents), float64(bytes)/float64(in.cfg.BufferBytes))
	return l
}

// totals is what a histogram of seconds has seen.
func totals(h prometheus.Histogram) (count uint64, sum time.Duration) {
	var m dto.Metric
	if err := h.Write(&m); err != nil {
		panic(err) // it has no way to fail
	}
	seen := m.GetHistogram()
	return seen.GetSampleCount(), time.Duration(seen.GetSampleSum() * float64(time.Second))
}
