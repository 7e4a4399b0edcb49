//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/daemon"
)

// sendPoll is how often the deliveries of an event are asked about.
const sendPoll = 100 * time.Millisecond

// sendConfig is what `fairhook send` can be told.
type sendConfig struct {
	Tenant, Webhook string
	ContentType     string
	IdempotencyKey  string
	Wait            bool
}

func newSendCommand() *cobra.Command {
	var cfg sendConfig
	return remoteCommand("send TYPE [PAYLOAD]", "Submit an event", `Submit an event of a type, with a payload: JSON, @FILE, or - for standard input; {} if
there is none. It goes to all webhooks of --tenant that want the type, or to one
--webhook. Receivers get the payload byte for byte.

With --content-type the payload may be anything, for one --webhook. With --wait the
command waits for what becomes of each delivery, and fails unless all succeed with
their first attempt.`,
		cobra.RangeArgs(1, 2), func(flags *pflag.FlagSet) {
			flags.StringVar(&cfg.Tenant, "tenant", "", "tenant whose webhooks get the event")
			flags.StringVar(&cfg.Webhook, "webhook", "", "id of the one webhook that gets the event")
			flags.StringVar(&cfg.ContentType, "content-type", "", "content type of a payload that is not JSON")
			flags.StringVar(&cfg.IdempotencyKey, "idempotency-key", "", "a name for this submission, under which it can be repeated for 24 h; made if not set")
			flags.BoolVar(&cfg.Wait, "wait", false, "wait for the first attempt of every delivery")
		}, cfg.run)
}

func (cfg *sendConfig) run(ctx context.Context, c *call) error {
	switch {
	case (cfg.Tenant == "") == (cfg.Webhook == ""):
		return usage("give either --tenant or --webhook")
	case cfg.ContentType != "" && cfg.Webhook == "":
		return usage("--content-type needs a --webhook")
	}
	payload := []byte(`{}`)
	if len(c.args) > 1 {
		var err error
		if payload, err = readArgument(c.args[1], c.in); err != nil {
			return err
		}
	}
	if cfg.IdempotencyKey == "" {
		cfg.IdempotencyKey = client.NewIdempotencyKey()
	}
	accepted, err := cfg.submit(ctx, c, payload)
	if err != nil {
		return fmt.Errorf("%w (idempotency key %s)", err, cfg.IdempotencyKey)
	}
	fields := []field{{"id", accepted.ID}, {"accepted", when(&accepted.CreatedAt)}}
	if accepted.Replayed {
		fields = append(fields, field{"replayed", "yes: it had been submitted before"})
	}
	for _, d := range accepted.Deliveries {
		fields = append(fields, field{"delivery", d.WebhookID + " " + string(d.Status)})
	}
	if len(accepted.Deliveries) == 0 {
		fields = append(fields, field{"deliveries", "none: no webhook wants it"})
	}
	if !cfg.Wait {
		return c.out.value(accepted, fields...)
	}
	if err := c.out.say("accepted %s", accepted.ID); err != nil {
		return err
	}
	return c.await(ctx, accepted.ID)
}

func (cfg *sendConfig) submit(ctx context.Context, c *call, payload []byte) (*client.Accepted, error) {
	if cfg.ContentType != "" {
		return c.SubmitRaw(ctx, cfg.Webhook, c.args[0], cfg.ContentType, payload, client.WithIdempotencyKey(cfg.IdempotencyKey))
	}
	if !json.Valid(payload) {
		return nil, usage("the payload is not JSON: give --content-type to send it as something else")
	}
	return c.Submit(ctx, client.Event{
		Tenant: cfg.Tenant, WebhookID: cfg.Webhook, Type: c.args[0], Payload: json.RawMessage(payload), IdempotencyKey: cfg.IdempotencyKey,
	})
}

// await waits until every delivery of an event has been attempted, and prints what
// became of them. It is an error if one did not succeed.
func (c *call) await(ctx context.Context, eventID string) error {
	for {
		event, err := c.Event(ctx, eventID)
		if err != nil {
			return err
		}
		waiting, failed := 0, 0
		for _, d := range event.Deliveries {
			switch d.Status {
			case client.DeliveryPending, client.DeliveryDelivering:
				waiting++
			case client.DeliveryDelivered:
			default:
				failed++
			}
		}
		if waiting > 0 {
			select {
			case <-ctx.Done():
				return &daemon.ExitError{
					Code: daemon.ExitFailure, Err: fmt.Errorf("%d of %d deliveries have not been attempted yet", waiting, len(event.Deliveries)),
				}
			case <-time.After(sendPoll):
			}
			continue
		}
		if err := c.printEvent(event); err != nil {
			return err
		}
		if failed > 0 {
			return fmt.Errorf("%d of %d deliveries did not succeed", failed, len(event.Deliveries))
		}
		return nil
	}
}
