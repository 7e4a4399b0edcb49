//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairhook/fairhook/pkg/client"
)

const (
	// tailPoll is how often new events are looked for, and tailWindow how long an event
	// may take from its acceptance until it can be seen.
	tailPoll   = time.Second
	tailWindow = 30 * time.Second
)

// registerListing declares what lists of events and deliveries are filtered by.
func registerListing(flags *pflag.FlagSet, status, eventType *string, metadata *map[string]string) {
	flags.StringVar(status, "status", "", "only those that stand like this")
	flags.StringVar(eventType, "type", "", "only those of this event type")
	flags.StringToStringVar(metadata, "metadata", nil, "only those with these pairs, as name=value")
}

// registerSince declares how long ago what is listed was accepted.
func registerSince(flags *pflag.FlagSet, since, until *time.Duration) {
	flags.DurationVar(since, "since", 0, "only those accepted so long ago at most; 0: any time")
	flags.DurationVar(until, "until", 0, "only those accepted so long ago at least; 0: any time")
}

// ago is the moment so long ago; zero for 0.
func ago(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(-d)
}

const eventHeading = "id\taccepted\ttenant\ttype\tdeliveries\tbytes\tmetadata"

func eventRow(e *client.EventSummary) []string {
	return []string{
		e.ID, when(&e.CreatedAt), e.Tenant, e.Type, strconv.Itoa(e.DeliveryCount), strconv.Itoa(e.PayloadBytes), orNone(pairs(e.Metadata)),
	}
}

func pairs(metadata map[string]string) string {
	var texts []string
	for name, value := range metadata {
		texts = append(texts, printable([]byte(name+"="+value)))
	}
	slices.Sort(texts)
	return strings.Join(texts, ",")
}

func newEventListCommand() *cobra.Command {
	var (
		filter       client.ListEvents
		status       string
		since, until time.Duration
		limit        int
	)
	return remoteCommand("list", "List events", `List events, the newest first. --status is a final one of a delivery of the event:
delivered, exhausted, cancelled or dropped.`, cobra.NoArgs, func(flags *pflag.FlagSet) {
		flags.StringVar(&filter.Tenant, "tenant", "", "only those of this tenant")
		flags.StringVar(&filter.WebhookID, "webhook", "", "only those with a delivery to this webhook")
		registerListing(flags, &status, &filter.Type, &filter.Metadata)
		registerSince(flags, &since, &until)
		registerLimit(flags, &limit)
	}, func(ctx context.Context, c *call) error {
		filter.Status, filter.After, filter.Before = client.DeliveryStatus(status), ago(since), ago(until)
		return printList(c.out, c.Events(ctx, filter), limit, eventHeading, eventRow)
	})
}

func newEventTailCommand() *cobra.Command {
	var (
		filter client.ListEvents
		since  time.Duration
	)
	return remoteCommand("tail", "Show events as they are accepted", `Show events as they are accepted, until Ctrl-C: --timeout is not for this command.`, cobra.NoArgs, func(flags *pflag.FlagSet) {
		flags.StringVar(&filter.Tenant, "tenant", "", "only those of this tenant")
		flags.StringVar(&filter.WebhookID, "webhook", "", "only those with a delivery to this webhook")
		flags.StringVar(&filter.Type, "type", "", "only those of this event type")
		flags.DurationVar(&since, "since", 0, "begin with those accepted so long ago")
	}, func(_ context.Context, c *call) error {
		filter.After = time.Now().Add(-since)
		return c.tail(c.untilStopped, filter)
	})
}

// tail prints events as they come, from filter.After on, until ctx ends.
func (c *call) tail(ctx context.Context, filter client.ListEvents) error {
	seen := map[string]time.Time{}
	for {
		var found []*client.EventSummary
		for e, err := range c.Events(ctx, filter) {
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			if _, known := seen[e.ID]; !known {
				seen[e.ID] = e.CreatedAt
				found = append(found, e)
			}
		}
		slices.Reverse(found) // the oldest first
		for _, e := range found {
			if err := c.out.item(e, eventRow(e)); err != nil {
				return err
			}
		}
		// An event is seen when it is committed, which is later than it was accepted.
		if from := time.Now().Add(-tailWindow); from.After(filter.After) {
			filter.After = from
			for id, at := range seen {
				if at.Before(from) {
					delete(seen, id)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tailPoll):
		}
	}
}

func newEventExplainCommand() *cobra.Command {
	var webhook string
	return remoteCommand("explain ID", "Say why the deliveries of an event are where they are",
		`Say in plain words where each delivery of an event stands, why, and what happens next.`,
		cobra.ExactArgs(1), func(flags *pflag.FlagSet) {
			flags.StringVar(&webhook, "webhook", "", "only the delivery to this webhook")
		}, func(ctx context.Context, c *call) error {
			x, err := c.Explain(ctx, c.args[0], webhook)
			if err != nil {
				return err
			}
			if c.out.json {
				return c.out.line(x)
			}
			var text strings.Builder
			fmt.Fprintln(&text, x.Summary)
			for _, d := range x.Deliveries {
				fmt.Fprintf(&text, "\n%s %s: %s\n", d.WebhookID, d.Status, d.Cause)
				for _, sentence := range d.Sentences {
					fmt.Fprintf(&text, "    %s\n", printable([]byte(sentence)))
				}
			}
			if x.LeftOut > 0 {
				fmt.Fprintf(&text, "\n%d more deliveries: ask for one with --webhook\n", x.LeftOut)
			}
			return c.out.say("%s", strings.TrimSuffix(text.String(), "\n"))
		})
}

func newWebhookDeliveriesCommand() *cobra.Command {
	var (
		filter       client.ListWebhookDeliveries
		status       string
		since, until time.Duration
		limit        int
	)
	return remoteCommand("deliveries ID", "List the deliveries of a webhook", `List the deliveries of a webhook in any status.`, cobra.ExactArgs(1), func(flags *pflag.FlagSet) {
		registerListing(flags, &status, &filter.Type, &filter.Metadata)
		registerSince(flags, &since, &until)
		registerLimit(flags, &limit)
	}, func(ctx context.Context, c *call) error {
		filter.Status, filter.After, filter.Before = client.DeliveryStatus(status), ago(since), ago(until)
		return printList(c.out, c.Deliveries().ListFor(ctx, c.args[0], filter), limit, "event\taccepted\ttype\tstatus\tattempts\treason\tcode\tnext",
			func(d *client.ListedDelivery) []string {
				return []string{
					d.EventID, when(&d.CreatedAt), orNone(d.Type), string(d.Status), strconv.Itoa(d.Attempts), orNone(shown(d.Reason)),
					orNone(shown(d.LastStatusCode)), orNone(when(d.NextAttemptAt)),
				}
			})
	})
}

func newWebhookStatsCommand() *cobra.Command {
	return remoteCommand("stats ID", "Show how a webhook's deliveries go", `Show a webhook's backlog, how its last attempts went, and what keeps its deliveries.`,
		cobra.ExactArgs(1), nil, func(ctx context.Context, c *call) error {
			stats, err := c.WebhookStats(ctx, c.args[0])
			if err != nil {
				return err
			}
			return c.out.value(stats, jsonFields(stats, "webhook_id", "status", "backlog", "in_flight")...)
		})
}

func newWebhookTestCommand() *cobra.Command {
	return remoteCommand("test ID", "Send a test to a webhook", `Have one signed request made to a webhook at once, also to one that is paused or
disabled, and show what came of it. A test that succeeds enables a webhook that
Fairhook has disabled. The command fails if the test does.`,
		cobra.ExactArgs(1), nil, func(ctx context.Context, c *call) error {
			test, err := c.Webhooks().Test(ctx, c.args[0])
			for err == nil && test.Status == client.TestPending {
				select {
				case <-ctx.Done():
					return fmt.Errorf("the test has not ended: %w", ctx.Err())
				case <-time.After(tailPoll):
				}
				test, err = c.Webhooks().GetTest(ctx, c.args[0], test.ID)
			}
			if err != nil {
				return err
			}
			if err := c.out.value(test, jsonFields(test, "id", "webhook_id", "status", "reason", "status_code", "webhook_status")...); err != nil {
				return err
			}
			if test.Status != client.TestDelivered {
				return fmt.Errorf("the test ended as %s", test.Status)
			}
			return nil
		})
}

func newWebhookRotateCommand() *cobra.Command {
	var (
		kind    string
		overlap time.Duration
	)
	return remoteCommand("rotate ID", "Give a webhook a new signing secret", `Give a webhook a new signing secret and print it. Those before stay valid for
--overlap, and every request is signed with all of them.`,
		cobra.ExactArgs(1), func(flags *pflag.FlagSet) {
			flags.StringVar(&kind, "kind", "", "symmetric or ed25519; symmetric if not set")
			flags.DurationVar(&overlap, "overlap", 24*time.Hour, "how long the secrets before stay valid, in whole seconds, up to 720h; 0: they end at once")
		}, func(ctx context.Context, c *call) error {
			rotation := client.SecretRotation{Kind: client.SecretKind(kind), Overlap: overlap}
			if overlap == 0 {
				rotation.Overlap = -1
			}
			secret, err := c.Webhooks().RotateSecret(ctx, c.args[0], rotation)
			if err != nil {
				return err
			}
			return c.out.value(secret, jsonFields(secret, "id")...)
		})
}

// jsonFields are what is printed of a thing: its members under the names that they have
// in the API, these first. Texts are printed as they are, everything else as JSON.
func jsonFields(v any, first ...string) []field {
	var text bytes.Buffer
	if (&printer{w: &text, json: true}).line(v) != nil {
		return nil
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(text.Bytes(), &members) != nil {
		return nil
	}
	names := slices.Clone(first)
	for name := range members {
		if !slices.Contains(first, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names[len(first):])
	var fields []field
	for _, name := range names {
		value := string(members[name])
		var plain string
		if json.Unmarshal(members[name], &plain) == nil { // of null too, which leaves it empty
			value = plain
		}
		if value == "{}" || value == "[]" || value == "" {
			continue
		}
		fields = append(fields, field{name, printable([]byte(value))})
	}
	return fields
}
