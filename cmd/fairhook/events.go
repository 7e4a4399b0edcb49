//go:build unix

package main

import (
	"context"
	"iter"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairhook/fairhook/pkg/client"
)

func newEventCommand() *cobra.Command {
	return group("event", "See events and what became of them",
		newEventListCommand(), newEventTailCommand(), newEventExplainCommand(),
		remoteCommand("show ID", "Show an event and where its deliveries stand",
			`Show an event, where each of its deliveries stands, and its payload.`,
			cobra.ExactArgs(1), nil, func(ctx context.Context, c *call) error {
				event, err := c.Event(ctx, c.args[0])
				if err != nil {
					return err
				}
				return c.printEvent(event)
			}),
		remoteCommand("attempts ID", "List the attempts to deliver an event",
			`List every request that was made for an event, and the ends of deliveries that came
without one (attempt 0). Times are in milliseconds.`,
			cobra.ExactArgs(1), nil, func(ctx context.Context, c *call) error {
				return printList(c.out, c.EachAttempt(ctx, c.args[0], 0), 0, "webhook\tattempt\tstarted\treason\tstatus\tcode\twaited\ttook\tnext\tdetail", attemptRow)
			}),
	)
}

// printEvent prints an event with its deliveries.
func (c *call) printEvent(event *client.EventView) error {
	fields := []field{
		{"id", event.ID},
		{"tenant", event.Tenant},
		{"type", event.Type},
		{"accepted", when(&event.CreatedAt)},
		{"happened", when(event.Timestamp)},
		{"content type", event.ContentType},
		{"payload", printable(event.PayloadBytes())},
	}
	for _, d := range event.Deliveries {
		text := d.WebhookID + " " + string(d.Status)
		if d.Attempts > 0 {
			text += ", " + strconv.Itoa(d.Attempts) + " attempts"
		}
		if d.Reason != nil {
			text += ", last: " + *d.Reason
		}
		if d.LastStatusCode != nil {
			text += " (" + strconv.Itoa(*d.LastStatusCode) + ")"
		}
		if d.NextAttemptAt != nil {
			text += ", next " + when(d.NextAttemptAt)
		}
		fields = append(fields, field{"delivery", text})
	}
	return c.out.value(event, fields...)
}

func attemptRow(a *client.Attempt) []string {
	detail := ""
	if a.Detail != nil {
		detail = printable([]byte(*a.Detail))
	}
	return []string{
		a.WebhookID, strconv.Itoa(a.Number), when(&a.StartedAt), a.Reason, string(a.Status), orNone(shown(a.StatusCode)),
		inMilliseconds(a.Timings.QueueWait), inMilliseconds(a.Timings.Total), orNone(when(a.NextAttemptAt)), orNone(detail),
	}
}

func inMilliseconds(micros *int64) string {
	if micros == nil {
		return "-"
	}
	return strconv.FormatFloat(float64(*micros)/1000, 'f', 1, 64)
}

// all is a list of what is there already.
func all[T any](items []T) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		for i := range items {
			if !yield(&items[i], nil) {
				return
			}
		}
	}
}

func newDeliveryCommand() *cobra.Command {
	var (
		filter       client.ListDeliveries
		status       string
		since, until time.Duration
		limit        int
	)
	return group("delivery", "See deliveries over all webhooks",
		remoteCommand("list", "List deliveries that ended without success",
			`List deliveries that ended without success, those that ended last first.`,
			cobra.NoArgs, func(flags *pflag.FlagSet) {
				flags.StringVar(&status, "status", string(client.DeliveryExhausted), "how they ended: exhausted, cancelled or dropped")
				flags.StringVar(&filter.Tenant, "tenant", "", "only those of this tenant")
				flags.StringVar(&filter.WebhookID, "webhook", "", "only those of this webhook")
				flags.StringVar(&filter.Reason, "reason", "", "only those whose last attempt ended like this")
				flags.DurationVar(&since, "since", 0, "only those that ended so long ago at most; 0: any time")
				flags.DurationVar(&until, "until", 0, "only those that ended so long ago at least; 0: any time")
				registerLimit(flags, &limit)
			}, func(ctx context.Context, c *call) error {
				filter.Status, filter.After, filter.Before = client.DeliveryStatus(status), ago(since), ago(until)
				return printList(c.out, c.Deliveries().List(ctx, filter), limit, "event\twebhook\ttenant\ttype\tstatus\treason\tattempts\tcode\tended",
					func(d *client.EndedDelivery) []string {
						return []string{
							d.EventID, d.WebhookID, d.Tenant, orNone(d.Type), string(d.Status), d.Reason, strconv.Itoa(d.Attempts),
							orNone(shown(d.LastStatusCode)), when(&d.EndedAt),
						}
					})
			}))
}

func newInstancesCommand() *cobra.Command {
	return remoteCommand("instances", "List the running processes of Fairhook",
		`List the processes of Fairhook, those that have not been heard of for a while too. It
needs a key for all tenants.`,
		cobra.NoArgs, nil, func(ctx context.Context, c *call) error {
			return printList(c.out, c.Instances(ctx, 0), 0, "id\trole\tversion\thost\tstatus\tleader\tload\tstarted\theard of",
				func(i *client.Instance) []string {
					status := string(i.Status)
					if i.Draining {
						status += ", draining"
					}
					leader := "-"
					if i.Leader {
						leader = "leader"
					}
					return []string{
						i.ID, i.Role, i.Version, i.Host, status, leader,
						strconv.Itoa(i.InFlight) + "/" + strconv.Itoa(i.Capacity), when(&i.StartedAt), when(&i.HeartbeatAt),
					}
				})
		})
}
