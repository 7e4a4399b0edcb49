//go:build unix

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairhook/fairhook/pkg/client"
)

func newKeyCommand() *cobra.Command {
	var (
		filter  client.ListKeys
		limit   int
		overlap time.Duration
	)
	return group("key", "Manage API keys",
		newKeyCreateCommand(),
		remoteCommand("list", "List API keys", `List API keys, the newest first, revoked and expired ones too.`, cobra.NoArgs, func(flags *pflag.FlagSet) {
			flags.StringVar(&filter.Tenant, "tenant", "", "only those of this tenant")
			registerLimit(flags, &limit)
		}, func(ctx context.Context, c *call) error {
			return printList(c.out, c.Keys().List(ctx, filter), limit, "id\thint\ttenant\tscopes\tstate\tlast used\tdescription", func(k *client.Key) []string {
				return []string{
					k.ID, k.Hint, orNone(shown(k.Tenant)), scopes(k.Scopes), keyState(k, time.Now()), orNone(when(k.LastUsedAt)),
					orNone(printable([]byte(k.Description))),
				}
			})
		}),
		remoteCommand("show ID", "Show an API key", `Show what is known of an API key; its text is not kept.`, cobra.ExactArgs(1), nil, func(ctx context.Context, c *call) error {
			key, err := c.Keys().Get(ctx, c.args[0])
			if err != nil {
				return err
			}
			return c.out.value(key, keyFields(key)...)
		}),
		remoteCommand("revoke ID...", "End API keys for good", `End API keys for good, everywhere within moments.`, cobra.MinimumNArgs(1), nil, func(ctx context.Context, c *call) error {
			for _, id := range c.args {
				if err := c.Keys().Revoke(ctx, id); err != nil {
					return fmt.Errorf("%s: %w", id, err)
				}
				if err := c.out.say("revoked %s", id); err != nil {
					return err
				}
			}
			return nil
		}),
		remoteCommand("rotate ID", "Make a new signing secret for an API key", `Make a new signing secret for an API key that requires signatures, and print it. Those
before stay valid for --overlap.`, cobra.ExactArgs(1), func(flags *pflag.FlagSet) {
			flags.DurationVar(&overlap, "overlap", 24*time.Hour, "how long the secrets before stay valid, in whole seconds")
		}, func(ctx context.Context, c *call) error {
			secret, err := c.Keys().RotateSecret(ctx, c.args[0], overlap)
			if err != nil {
				return err
			}
			return c.out.value(map[string]string{"signing_secret": secret}, field{"signing secret", secret})
		}),
	)
}

func newKeyCreateCommand() *cobra.Command {
	var (
		tenant, description string
		names, networks     []string
		life                time.Duration
		signed              bool
	)
	return remoteCommand("create", "Make an API key", `Make an API key and print its text, which is not kept.`, cobra.NoArgs, func(flags *pflag.FlagSet) {
		flags.StringVar(&tenant, "tenant", "", "whose things it is for; everybody's if not set")
		flags.StringSliceVar(&names, "scopes", []string{string(client.ScopeSubmit)}, "what it may be used for: submit, read, manage, admin")
		flags.StringVar(&description, "description", "", "who uses it")
		flags.StringSliceVar(&networks, "allowed-cidrs", nil, "networks from which it may be used; all if not set")
		flags.DurationVar(&life, "expires-in", 0, "how long it is valid; 0: until it is revoked")
		flags.BoolVar(&signed, "require-signature", false, "what is submitted with it must be signed")
	}, func(ctx context.Context, c *call) error {
		key := client.NewKey{Description: description, AllowedCIDRs: networks, RequireSignature: signed}
		if tenant != "" {
			key.Tenant = &tenant
		}
		for _, name := range names {
			key.Scopes = append(key.Scopes, client.Scope(name))
		}
		if life > 0 {
			key.ExpiresAt = time.Now().Add(life)
		}
		created, err := c.Keys().Create(ctx, key)
		if err != nil {
			return err
		}
		return c.out.value(created, append(keyFields(&created.Key), field{"key", created.Text}, field{"signing secret", created.SigningSecret})...)
	})
}

func keyFields(k *client.Key) []field {
	return []field{
		{"id", k.ID},
		{"hint", k.Hint},
		{"tenant", shown(k.Tenant)},
		{"scopes", scopes(k.Scopes)},
		{"state", keyState(k, time.Now())},
		{"description", printable([]byte(k.Description))},
		{"allowed cidrs", strings.Join(k.AllowedCIDRs, ",")},
		{"require signature", strconv.FormatBool(k.RequireSignature)},
		{"created", when(&k.CreatedAt)},
		{"expires", when(k.ExpiresAt)},
		{"revoked", when(k.RevokedAt)},
		{"last used", when(k.LastUsedAt)},
	}
}

// keyState is whether an API key is valid at a moment.
func keyState(k *client.Key, now time.Time) string {
	switch {
	case k.RevokedAt != nil:
		return "revoked"
	case k.ExpiresAt != nil && !k.ExpiresAt.After(now):
		return "expired"
	}
	return "valid"
}

func scopes(list []client.Scope) string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = string(s)
	}
	return strings.Join(names, ",")
}
