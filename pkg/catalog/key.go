package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// maxKeyBytes bounds roughly the memory for API keys, made-up ones that were
	// asked for included.
	maxKeyBytes = 16 << 20
	// maxKeyLoads is how many API keys are looked up at the same time. Anyone can
	// make up keys, and must not be able to take up all connections with them.
	maxKeyLoads = 4
)

// Key is an API key that is valid now. It is shared: nobody may change it.
type Key struct {
	Principal webhook.Principal
	// RequireSignature says that submissions must be signed with one of Secrets,
	// which are raw keys, newest first.
	RequireSignature bool
	Secrets          [][]byte
}

// Key returns an API key by the hash of its text. The error is a *webhook.Error
// with CodeNotFound when there is none that is valid, whose text says why to
// whoever has the key; other errors are those of Webhook. Known keys, and
// unknown ones asked for before, cost no round trip and no allocation.
//
// Without Config.KeyBox a key that requires signatures cannot be used: that is an
// internal error.
func (c *Catalog) Key(ctx context.Context, hash webhook.KeyHash) (*Key, error) {
	return c.keys.get(ctx, hash)
}

// InvalidateKey forgets an API key, as Invalidate does a webhook.
func (c *Catalog) InvalidateKey(hash webhook.KeyHash) { c.keys.invalidate(hash) }

// keyChanged forgets the API key that a notification names.
func (c *Catalog) keyChanged(text string) {
	hash, err := webhook.ParseKeyHash(text)
	if err != nil {
		return // it names nothing that could be known here
	}
	c.metrics.invalidations.Inc()
	c.InvalidateKey(hash)
}

func (c *Catalog) loadKey(ctx context.Context, hash webhook.KeyHash) (*Key, time.Duration, error) {
	select {
	case c.keyLoads <- struct{}{}:
		defer func() { <-c.keyLoads }()
	case <-ctx.Done():
		// Not postgres.Unavailable: this says nothing about the database.
		return nil, 0, &webhook.Error{
			Code:       webhook.CodeUnavailable,
			Message:    "The service has too many API keys to look up. Nothing was kept; try again.",
			RetryAfter: time.Second,
		}
	}
	loaded, err := postgres.LoadCatalogKey(ctx, c.pool, hash)
	if err != nil {
		return nil, 0, err
	}
	k := &loaded.Key
	switch {
	case k.RevokedAt != nil:
		return nil, 0, webhook.Errorf(webhook.CodeNotFound, "The API key has been revoked.")
	case loaded.Expired:
		return nil, 0, webhook.Errorf(webhook.CodeNotFound, "The API key has expired.")
	}
	known := &Key{
		Principal:        webhook.Principal{KeyID: k.ID, Tenant: k.Tenant, Scopes: k.Scopes, ExpiresAt: k.ExpiresAt},
		RequireSignature: k.RequireSignature,
	}
	if known.Principal.Networks, err = webhook.ParseCIDRs(k.AllowedCIDRs); err != nil {
		return nil, 0, fmt.Errorf("read allowed_cidrs of API key %s: %w", k.ID, err)
	}
	if k.RequireSignature {
		if known.Secrets, err = c.openKeySecrets(k.ID, loaded.Sealed); err != nil {
			return nil, 0, err
		}
	}
	if loaded.ExpiresIn == nil {
		return known, 0, nil
	}
	return known, max(time.Millisecond, *loaded.ExpiresIn), nil
}

func (c *Catalog) openKeySecrets(id webhook.ID, sealed [][]byte) ([][]byte, error) {
	if c.keyBox == nil {
		return nil, fmt.Errorf("open the signing secrets of API key %s: there is no box to open them with", id)
	}
	var secrets [][]byte
	for _, one := range sealed {
		text, err := c.keyBox.Open(one, id.String())
		if err != nil {
			return nil, fmt.Errorf("open a signing secret of API key %s: %w", id, err)
		}
		secret, err := signature.ParseSecret(string(text))
		if err != nil {
			return nil, fmt.Errorf("parse a signing secret of API key %s: %w", id, err)
		}
		secrets = append(secrets, secret)
	}
	return secrets, nil
}

// keyWeight is roughly how many bytes a key takes.
func keyWeight(_ webhook.KeyHash, k *Key) int {
	weight := 384
	if k == nil {
		return weight
	}
	if k.Principal.Tenant != nil {
		weight += len(*k.Principal.Tenant)
	}
	weight += 32 * len(k.Principal.Networks)
	for _, secret := range k.Secrets {
		weight += 24 + len(secret)
	}
	return weight
}
