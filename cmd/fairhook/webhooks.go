//go:build unix

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairhook/fairhook/pkg/client"
)

func newWebhookCommand() *cobra.Command {
	return group("webhook", "Manage webhooks",
		newWebhookListCommand(), newWebhookCreateCommand(), newWebhookUpdateCommand(), newWebhookDeliveriesCommand(),
		newWebhookStatsCommand(), newWebhookTestCommand(), newWebhookRotateCommand(),
		eachWebhook("show ID...", "Show webhooks", `Show webhooks, with all their settings.`,
			func(ctx context.Context, c *call, id string) (*client.Webhook, error) {
				return c.Webhooks().Get(ctx, id)
			}),
		eachWebhook("pause ID...", "Have the deliveries of webhooks wait", `Have the deliveries of webhooks wait, until they are resumed. Nothing is lost.`,
			func(ctx context.Context, c *call, id string) (*client.Webhook, error) {
				return c.Webhooks().Pause(ctx, id)
			}),
		eachWebhook("resume ID...", "Have the deliveries of webhooks go on", `Have the deliveries of paused or disabled webhooks go on where they stopped.`,
			func(ctx context.Context, c *call, id string) (*client.Webhook, error) {
				return c.Webhooks().Resume(ctx, id)
			}),
		remoteCommand("delete ID...", "Delete webhooks", `Delete webhooks. Deliveries that wait for them end as cancelled.`,
			cobra.MinimumNArgs(1), nil, func(ctx context.Context, c *call) error {
				for _, id := range c.args {
					if err := c.Webhooks().Delete(ctx, id); err != nil {
						return fmt.Errorf("%s: %w", id, err)
					}
					if err := c.out.say("deleted %s", id); err != nil {
						return err
					}
				}
				return nil
			}),
		remoteCommand("secrets ID", "Show the signing secrets of a webhook", `Show the signing secrets of a webhook, all of which are valid that have not expired.`,
			cobra.ExactArgs(1), nil, func(ctx context.Context, c *call) error {
				secrets, err := c.Webhooks().Secrets(ctx, c.args[0])
				if err != nil {
					return err
				}
				return printList(c.out, all(secrets), 0, "id\tkind\tsecret or public key\tcreated\texpires", func(s *client.Secret) []string {
					return []string{s.ID, string(s.Kind), cmp.Or(s.Secret, s.PublicKey), when(&s.CreatedAt), orNone(when(s.ExpiresAt))}
				})
			}),
	)
}

func newWebhookListCommand() *cobra.Command {
	var (
		filter client.ListWebhooks
		limit  int
	)
	return remoteCommand("list", "List webhooks", `List webhooks, the newest first.`, cobra.NoArgs, func(flags *pflag.FlagSet) {
		flags.StringVar(&filter.Tenant, "tenant", "", "only those of this tenant")
		registerLimit(flags, &limit)
	}, func(ctx context.Context, c *call) error {
		return printList(c.out, c.Webhooks().List(ctx, filter), limit, "id\ttenant\tstatus\tevent types\turl\tdescription", func(w *client.Webhook) []string {
			return []string{w.ID, w.Tenant, webhookStatus(w), strings.Join(w.EventTypes, ","), w.URL, orNone(printable([]byte(w.Description)))}
		})
	})
}

func webhookStatus(w *client.Webhook) string {
	if w.DisabledReason == nil {
		return string(w.Status)
	}
	return string(w.Status) + " (" + *w.DisabledReason + ")"
}

func newWebhookCreateCommand() *cobra.Command {
	var (
		flag     client.NewWebhook
		document string
	)
	return remoteCommand("create", "Create a webhook", `Create a webhook and print it with its signing secret. --json is the body of the API's
POST /v1/webhooks: JSON, @FILE, or - for standard input. It can have any setting, an
existing secret too; the other flags win over it.`,
		cobra.NoArgs, func(flags *pflag.FlagSet) {
			flags.StringVar(&flag.Tenant, "tenant", "", "tenant that it belongs to")
			flags.StringVar(&flag.URL, "target", "", "URL that it sends to")
			flags.StringVar(&flag.Description, "description", "", "what it is for")
			flags.StringSliceVar(&flag.EventTypes, "event-types", nil, "event types that it wants, such as order.paid or order.*; all if not set")
			flags.StringVar(&document, "json", "", "any settings, as the API has them")
		}, func(ctx context.Context, c *call) error {
			var webhook client.NewWebhook
			if document != "" {
				text, err := readArgument(document, c.in)
				if err != nil {
					return err
				}
				if err := decodeStrictly(text, &webhook); err != nil {
					return err
				}
			}
			webhook.Tenant = cmp.Or(flag.Tenant, webhook.Tenant)
			webhook.URL = cmp.Or(flag.URL, webhook.URL)
			webhook.Description = cmp.Or(flag.Description, webhook.Description)
			if flag.EventTypes != nil {
				webhook.EventTypes = flag.EventTypes
			}
			created, err := c.Webhooks().Create(ctx, webhook)
			if err != nil {
				return err
			}
			return c.out.value(created, append(webhookFields(&created.Webhook),
				field{"secret", created.Secret}, field{"public_key", created.PublicKey})...)
		})
}

func newWebhookUpdateCommand() *cobra.Command {
	var document string
	return remoteCommand("update ID", "Change a webhook", `Change a webhook's settings. --json is the body of the API's PATCH /v1/webhooks/{id}:
JSON, @FILE, or - for standard input. What is null goes back to its default.`,
		cobra.ExactArgs(1), func(flags *pflag.FlagSet) {
			flags.StringVar(&document, "json", "", "the settings to change, as the API has them")
		}, func(ctx context.Context, c *call) error {
			if document == "" {
				return usage("say with --json what to change")
			}
			text, err := readArgument(document, c.in)
			if err != nil {
				return err
			}
			update, err := parseUpdate(text)
			if err != nil {
				return err
			}
			webhook, err := c.Webhooks().Update(ctx, c.args[0], update)
			if err != nil {
				return err
			}
			return c.out.value(webhook, webhookFields(webhook)...)
		})
}

// parseUpdate reads a change of a webhook, in which null resets a field.
func parseUpdate(text []byte) (client.WebhookUpdate, error) {
	var (
		update  client.WebhookUpdate
		members map[string]json.RawMessage
	)
	if err := decodeStrictly(text, &members); err != nil {
		return update, err
	}
	for name, value := range members {
		if string(value) == "null" {
			update.Reset = append(update.Reset, name)
			delete(members, name)
		}
	}
	slices.Sort(update.Reset)
	rest, err := json.Marshal(members)
	if err != nil {
		return update, err
	}
	return update, decodeStrictly(rest, &update)
}

// decodeStrictly reads one JSON document, in which every member must be known.
func decodeStrictly(text []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	if err == nil && decoder.More() {
		err = errors.New("there is more than one document")
	}
	if err != nil {
		return usage("read --json: %w", err)
	}
	return nil
}

// eachWebhook makes a command that does something with each of some webhooks and prints
// them.
func eachWebhook(use, short, long string, do func(context.Context, *call, string) (*client.Webhook, error)) *cobra.Command {
	return remoteCommand(use, short, long, cobra.MinimumNArgs(1), nil, func(ctx context.Context, c *call) error {
		for i, id := range c.args {
			webhook, err := do(ctx, c, id)
			if err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			if i > 0 {
				if err := c.out.say(""); err != nil {
					return err
				}
			}
			if err := c.out.value(webhook, webhookFields(webhook)...); err != nil {
				return err
			}
		}
		return nil
	})
}

// webhookFields are what is printed of a webhook: what people look for first, and then
// every other setting.
func webhookFields(w *client.Webhook) []field {
	return jsonFields(w, "id", "tenant", "url", "status", "disabled_reason", "description", "event_types")
}
