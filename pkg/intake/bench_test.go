package intake

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// BenchmarkIntake measures events per second with many producers, each waiting
// for its receipt: 1 KiB payloads, one webhook each, with and without a key.
func BenchmarkIntake(b *testing.B) {
	for _, keyed := range []bool{false, true} {
		b.Run(fmt.Sprintf("keyed=%t", keyed), func(b *testing.B) {
			pool := pgtest.DB(b)
			clock, err := postgres.NewClock(b.Context(), pool)
			if err != nil {
				b.Fatal(err)
			}
			in := New(Config{Pool: pool, Clock: clock})
			var running sync.WaitGroup
			ctx, cancel := context.WithCancel(b.Context())
			running.Go(func() { _ = in.Run(ctx) })
			defer running.Wait()
			defer cancel()
			payload := make([]byte, 1024)
			webhooks := make([]webhook.ID, 100)
			for i := range webhooks {
				webhooks[i] = webhook.NewID(time.Now())
			}
			var next atomic.Int64
			b.SetParallelism(64)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					n := int(next.Add(1))
					i := Item{
						Tenant: "acme", Type: "order.paid", Payload: payload,
						WebhookIDs: webhooks[n%len(webhooks) : n%len(webhooks)+1],
					}
					if keyed {
						i.Key = &IdempotencyKey{Key: fmt.Sprint(n)}
					}
					if _, err := in.Submit(b.Context(), i); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
