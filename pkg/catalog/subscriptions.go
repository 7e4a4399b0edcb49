package catalog

import (
	"sync"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// Answers of match are remembered up to these bounds per tenant: types are
// chosen by producers, so there can be any number of them.
const (
	maxRememberedTypes = 256
	// rememberedPerWebhook bounds the memory for remembered answers by what the
	// tenant's list itself takes.
	rememberedPerWebhook = 4
	// shortList is how many webhooks it takes to remember that all or none of them
	// want an event: before that, looking at each is as quick, and takes no memory.
	shortList = 8
)

// subscriptions is all webhooks of one tenant.
type subscriptions struct {
	rows []postgres.Subscription
	all  []Target // of every row

	mu sync.RWMutex
	// matches are answers given before, by event type; guarded by mu.
	matches map[string][]Target
	// remembered is how many targets matches holds besides those of all; guarded
	// by mu.
	remembered int
}

func newSubscriptions(rows []postgres.Subscription) *subscriptions {
	s := &subscriptions{rows: rows, all: make([]Target, len(rows))}
	for i, row := range rows {
		s.all[i] = Target{row.WebhookID, row.State, row.AcceptPerSecond, row.MaxBacklog}
	}
	return s
}

// match is the webhooks that want an event of this type.
func (s *subscriptions) match(eventType string) []Target {
	s.mu.RLock()
	targets, known := s.matches[eventType]
	s.mu.RUnlock()
	if known {
		return targets
	}
	wanted := 0
	for i := range s.rows {
		if s.wants(i, eventType) {
			wanted++
		}
	}
	cost := wanted
	switch wanted {
	case 0:
	case len(s.all):
		targets, cost = s.all, 0
	default:
		targets = make([]Target, 0, wanted)
		for i := range s.rows {
			if s.wants(i, eventType) {
				targets = append(targets, s.all[i])
			}
		}
	}
	if cost == 0 && len(s.rows) <= shortList {
		return targets
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.matches == nil {
		s.matches = make(map[string][]Target)
	}
	if len(s.matches) < maxRememberedTypes && s.remembered+cost <= rememberedPerWebhook*len(s.rows) {
		if _, raced := s.matches[eventType]; !raced {
			s.matches[eventType] = targets
			s.remembered += cost
		}
	}
	return targets
}

// wants reports whether a row's webhook wants an event of this type.
func (s *subscriptions) wants(row int, eventType string) bool {
	for _, pattern := range s.rows[row].EventTypes {
		if webhook.MatchesType(pattern, eventType) {
			return true
		}
	}
	return false
}

// subscriptionsWeight is roughly how many bytes a tenant's list takes, the
// answers that it may come to remember included.
func subscriptionsWeight(tenant string, s *subscriptions) int {
	weight := 320 + len(tenant)
	if s == nil {
		return weight
	}
	if len(s.rows) > 1 { // of one webhook nothing is remembered
		weight += 56 * rememberedPerWebhook * len(s.rows)
	}
	for _, row := range s.rows {
		weight += 160
		for _, pattern := range row.EventTypes {
			weight += 16 + len(pattern)
		}
	}
	return weight
}
