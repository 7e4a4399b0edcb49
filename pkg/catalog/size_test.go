package catalog

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// A hundred thousand webhooks, each of a tenant of its own, are all answered from
// memory once they were loaded, and take less than 200 MB together with the lists
// of their tenants. It measures the heap, so nothing runs beside it.
func TestAHundredThousandWebhooksFit(t *testing.T) {
	const webhooks = 100_000
	c := New(Config{Listen: &pgx.ConnConfig{}})
	c.current.Load().live.Store(true)
	var loads int
	id := func(n int) (id webhook.ID) {
		binary.BigEndian.PutUint64(id[:], uint64(n)*0x9e3779b97f4a7c15)
		return id
	}
	entry := func(_ context.Context, id webhook.ID) (*Entry, time.Duration, error) {
		loads++
		signer, err := signature.NewSigner([]webhook.Scheme{webhook.SchemeStandard}, nil, []signature.Secret{{
			Kind: webhook.SecretSymmetric, Text: signature.NewSecret().Reveal(),
		}})
		return &Entry{
			Webhook: webhook.Webhook{
				ID: id, Tenant: "tenant-" + id.String(), URL: "https://hooks.example.com/services/" + id.String(),
				Description: "orders of the shop in Berlin", EventTypes: []string{strings.Clone("order.*"), strings.Clone("invoice.paid")},
				RetrySchedule: []int{5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400},
				State:         webhook.State(strings.Clone(string(webhook.StateActive))),
				Headers:       map[string]webhook.Secret{}, AllowedCIDRs: []string{},
				Signatures: []webhook.Scheme{webhook.Scheme(strings.Clone(string(webhook.SchemeStandard)))},
			},
			Signer: signer,
		}, 0, err
	}
	list := func(_ context.Context, tenant string) (*subscriptions, time.Duration, error) {
		loads++
		return newSubscriptions([]postgres.Subscription{{
			WebhookID: webhook.ID{1}, State: webhook.State(strings.Clone(string(webhook.StateActive))), MaxBacklog: 1,
			EventTypes: []string{strings.Clone("order.*"), strings.Clone("invoice.paid")},
		}}), 0, nil
	}
	before := heap()
	c.webhooks = newTable(c, "webhook", entry, entryWeight, defaultMaxWebhookBytes)
	c.subscribers = newTable(c, "subscribers", list, subscriptionsWeight, defaultMaxBytes)
	for round := range 2 {
		for n := range webhooks {
			if _, err := c.Webhook(t.Context(), id(n)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Subscribers(t.Context(), fmt.Sprint("tenant-", id(n)), "order.paid"); err != nil {
				t.Fatal(err)
			}
		}
		if round == 0 && loads != 2*webhooks {
			t.Errorf("%d loads", loads)
		}
	}
	if more := loads - 2*webhooks; more > 0 {
		t.Errorf("%d answers of %d were forgotten", more, 2*webhooks)
	}
	taken := heap() - before
	t.Logf("%d webhooks take %d MB", webhooks, taken>>20)
	if taken > 200_000_000 {
		t.Errorf("%d webhooks take %d bytes", webhooks, taken)
	}
	runtime.KeepAlive(c)
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
