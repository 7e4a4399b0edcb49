//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

const (
	demoTenant = "demo"
	// demoDescription marks the webhooks that are ours to remove.
	demoDescription = "demo receiver of fairhook dev"
	// demoPayload has what a decoder and encoder on its way would change: the
	// order of its members, its white space, a number that no float64 holds.
	demoPayload = `{"message": "hello from Fairhook", "amount": 12.50, "big": 9007199254740993}`
	// demoTimeout bounds each step of the demo.
	demoTimeout = 30 * time.Second
)

// demo is the main job, once: create a webhook, submit an event, see it arrive.
type demo struct {
	api      string
	key      string
	client   *client.Client
	receiver *receiver
	out      *console

	webhook *client.CreatedWebhook
	event   *client.Accepted
}

func (d *demo) run(ctx context.Context) (err error) {
	calls, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	d.webhook, err = d.client.Webhooks().Create(calls, client.NewWebhook{Tenant: demoTenant, URL: d.receiver.url, Description: demoDescription})
	if err != nil {
		return fmt.Errorf("create a webhook: %w", err)
	}
	if err := d.receiver.trust(d.webhook.Secret); err != nil {
		return err
	}
	d.out.step("Webhook created: %s sends to %s", d.webhook.ID, d.webhook.URL)

	start := time.Now()
	d.event, err = d.client.Submit(calls, client.Event{WebhookID: d.webhook.ID, Type: "demo.hello", Payload: json.RawMessage(demoPayload)})
	if err != nil {
		return fmt.Errorf("submit an event: %w", err)
	}
	d.out.step("Event submitted: %s", d.event.ID)

	got, err := d.arrival(ctx)
	if err != nil {
		return err
	}
	d.out.step("Event delivered %d ms after it was submitted. The receiver got:\n\n%s\n", got.at.Sub(start).Milliseconds(), indent(got.show()))
	if got.fault != nil {
		return fmt.Errorf("the delivery's signature does not verify: %w", got.fault)
	}
	if !bytes.Equal(got.body, []byte(demoPayload)) {
		return fmt.Errorf("the receiver got other bytes than were submitted: %s", demoPayload)
	}
	d.out.step("signature verified, by the Standard Webhooks library; the payload is what was submitted, byte for byte")
	return nil
}

// arrival waits for the demo's event.
func (d *demo) arrival(ctx context.Context) (delivery, error) {
	timer := time.NewTimer(demoTimeout)
	defer timer.Stop()
	for {
		select {
		case got := <-d.receiver.received:
			if got.header.Get("Webhook-Id") == d.event.ID {
				return got, nil
			}
		case <-timer.C:
			return delivery{}, fmt.Errorf("the event did not arrive within %s: %s; run it with --verbose to see the dispatcher's log", demoTimeout, d.explain(ctx))
		case <-ctx.Done():
			return delivery{}, context.Cause(ctx)
		}
	}
}

// explain says what became of the demo's event instead.
func (d *demo) explain(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	attempts, err := d.client.Attempts(ctx, d.event.ID)
	switch {
	case err != nil:
		return err.Error()
	case len(attempts) == 0:
		return "no attempt was made"
	}
	last := attempts[len(attempts)-1]
	text := fmt.Sprintf("attempt %d ended as %q", last.Number, last.Reason)
	if last.Detail != nil {
		text += " (" + *last.Detail + ")"
	}
	return text
}

// printCurl prints how to go on by hand. Each command works as it is printed.
func (d *demo) printCurl() {
	const auth = `-H 'Authorization: Bearer %s'`
	get := func(path string) string {
		return fmt.Sprintf("curl -sS "+auth+" %s%s", d.key, d.api, path)
	}
	post := func(path, body string) string {
		return fmt.Sprintf("curl -sS "+auth+" -H 'Content-Type: application/json' -d '%s' %s%s", d.key, body, d.api, path)
	}
	d.out.printf(`
Everything runs. Go on in another terminal; what the demo receiver gets is shown here.

# What the README's session needs:
export FAIRHOOK_URL='%s' FAIRHOOK_KEY='%s' RECEIVER='%s' SECRET='%s'

# Create another webhook to the demo receiver, with the secret that it trusts:
%s

# Submit an event to every webhook of the tenant:
%s

# Read the demo's event, and the attempts to deliver it:
%s
%s

Ctrl-C stops everything.
`,
		d.api, d.key, d.receiver.url, d.webhook.Secret,
		post("/v1/webhooks", fmt.Sprintf(`{"tenant":"%s","url":"%s","description":"%s","secret":"%s"}`, demoTenant, d.receiver.url, demoDescription, d.webhook.Secret)),
		post("/v1/events", fmt.Sprintf(`{"tenant":"%s","type":"order.paid","payload":{"order":1}}`, demoTenant)),
		get("/v1/events/"+d.event.ID),
		get("/v1/events/"+d.event.ID+"/attempts"),
	)
}

// watch shows what the receiver gets until ctx ends.
func (d *demo) watch(ctx context.Context) {
	for {
		select {
		case got := <-d.receiver.received:
			d.out.printf("\n%s\n", got.summary())
			if n := d.receiver.unseen.Swap(0); n > 0 {
				d.out.printf("(%d more came too fast to be shown)\n", n)
			}
		case <-ctx.Done():
			return
		}
	}
}

// show is a delivery in full, as a request reads.
func (d delivery) show() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s\nHost: %s\n", d.method, d.target, d.proto, d.host)
	for _, name := range slices.Sorted(maps.Keys(d.header)) {
		for _, value := range d.header[name] {
			fmt.Fprintf(&b, "%s: %s\n", name, value)
		}
	}
	return b.String() + "\n" + printable(d.body)
}

// summary is a delivery in two lines.
func (d delivery) summary() string {
	verdict := "signature verified"
	switch {
	case d.fault != nil:
		verdict = "NOT verified: " + d.fault.Error()
	case !d.verified:
		verdict = "signature not looked at"
	}
	return fmt.Sprintf("%s received %s, event %s, attempt %s, %s\n%s", d.at.Format(time.TimeOnly),
		printable([]byte(d.header.Get("Fairhook-Event-Type"))), printable([]byte(d.header.Get("Webhook-Id"))),
		printable([]byte(d.header.Get("Fairhook-Attempt"))), verdict, indent(printable(d.body)))
}

// removeDemoWebhooks removes the webhooks to demo receivers, which end with
// their run.
func removeDemoWebhooks(ctx context.Context, c *client.Client) error {
	for webhook, err := range c.Webhooks().List(ctx, client.ListWebhooks{Tenant: demoTenant}) {
		if err != nil {
			return fmt.Errorf("look for webhooks of an earlier demo: %w", err)
		}
		if webhook.Description != demoDescription {
			continue
		}
		if err := c.Webhooks().Delete(ctx, webhook.ID); err != nil && !client.IsNotFound(err) {
			return fmt.Errorf("remove the webhook of an earlier demo: %w", err)
		}
	}
	return nil
}
