package identity

import (
	"container/list"
	"fmt"
	"net/http"
	"sync"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// DefaultMaxClients is how many webhooks may have connections of their own at once.
const DefaultMaxClients = 1024

// Clients are what webhooks' requests go out through: one for all whose TLS is
// nothing special, and one for each of the others, kept for those used last. Its
// methods are safe for concurrent use.
type Clients struct {
	guard *egress.Guard
	plain *http.Client
	limit int

	mu    sync.Mutex                   // guards all below
	own   map[webhook.ID]*list.Element // of *ownClient
	order *list.List                   // the one used last in front
}

// ownClient is the client of one webhook.
type ownClient struct {
	id     webhook.ID
	tls    *webhook.TLS
	client *http.Client
}

// NewClients makes Clients that keep at most so many besides the common one; 0 means
// DefaultMaxClients.
func NewClients(guard *egress.Guard, limit int) *Clients {
	if limit == 0 {
		limit = DefaultMaxClients
	}
	return &Clients{
		guard: guard, plain: guard.Client(), limit: limit,
		own: map[webhook.ID]*list.Element{}, order: list.New(),
	}
}

// Of is the client for a webhook with this TLS configuration, nil being none. When the
// configuration has changed it is a new one, which uses no connection of the old one's.
// The error, of a configuration that cannot be used, is internal: those are refused
// where they are written.
func (c *Clients) Of(id webhook.ID, config *webhook.TLS) (*http.Client, error) {
	if config == nil {
		return c.plain, nil
	}
	if client := c.find(id, config); client != nil {
		return client, nil
	}
	// Keys take a while to parse: not with the lock held.
	pair, err := config.KeyPair()
	if err != nil {
		return nil, fmt.Errorf("build a client for webhook %s: %w", id, err)
	}
	authorities, err := config.Authorities()
	if err != nil {
		return nil, fmt.Errorf("build a client for webhook %s: authorities: %w", id, err)
	}
	client := c.guard.ClientFor(egress.TLS{Certificate: pair, RootCAs: authorities, ServerName: config.ServerName})
	return c.add(&ownClient{id, config, client}), nil
}

// find is the webhook's client, if it has one of this configuration.
func (c *Clients) find(id webhook.ID, config *webhook.TLS) *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, found := c.own[id]
	if !found {
		return nil
	}
	own := element.Value.(*ownClient)
	if own.tls != config { // as long as the catalog keeps its entry, they are the same
		if !own.tls.Equal(config) {
			return nil
		}
		own.tls = config
	}
	c.order.MoveToFront(element)
	return own.client
}

// add puts a client in place of the webhook's old one, if there is any, and gives up
// the one that was used longest ago if there are too many. It returns the one to use:
// another call may have been faster.
func (c *Clients) add(own *ownClient) *http.Client {
	if faster := c.find(own.id, own.tls); faster != nil {
		return faster
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, found := c.own[own.id]; found {
		c.remove(element)
	}
	c.own[own.id] = c.order.PushFront(own)
	if len(c.own) > c.limit {
		c.remove(c.order.Back())
	}
	return own.client
}

// remove gives up a client. Requests under way end as they would; their connections
// are closed then. The caller holds mu.
func (c *Clients) remove(element *list.Element) {
	own := element.Value.(*ownClient)
	c.order.Remove(element)
	delete(c.own, own.id)
	own.client.CloseIdleConnections()
}
