package postgres_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

func TestPoolStatsShowWhatIsInUse(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(postgres.PoolStats("a", pool), postgres.PoolStats("b", pgtest.DB(t)))
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "fairhook_pool_connections" {
			continue
		}
		for _, m := range family.GetMetric() {
			labels := m.GetLabel()
			if labels[0].GetValue() == "a" && labels[1].GetValue() == "in_use" && m.GetGauge().GetValue() != 1 {
				t.Errorf("%v connections in use, want the one that is", m.GetGauge().GetValue())
			}
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.Contains(p.Text, "counter") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	if n, err := testutil.GatherAndCount(registry); err != nil || n != 14 {
		t.Errorf("%d series, %v; want 7 for each pool", n, err)
	}
}
