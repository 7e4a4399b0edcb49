//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	sourceSvix   = "svix"
	sourceConvoy = "convoy"

	// maxImport bounds the file that is imported, in bytes.
	maxImport = 256 << 20
)

// importOptions are what `fairhook import` can be told besides the API.
type importOptions struct {
	// dryRun: show what would be done, and do nothing.
	dryRun bool
	// lossy: make webhooks without what cannot be carried over, too.
	lossy bool
}

func newImportCommand() *cobra.Command {
	var options importOptions
	return remoteCommand("import {svix|convoy} FILE", "Create the webhooks of a Svix or Convoy installation",
		`Create webhooks from what docs/examples/migrate/collect.py has read out of Svix or
Convoy, with their secrets and headers. FILE may be - for standard input.
docs/migrating.md tells the whole way.

What cannot be carried over is shown with each webhook. If its receiver would notice,
for example because events would not be filtered any more, the webhook is refused,
unless --lossy is given. Webhooks that an earlier run has made are recognised by their
description, and left as they are: what stopped half-way can be run again. Give a long
list its time with --timeout.

The API key needs the scopes read and manage. Secrets are not shown, nor are paths of
URLs, which may contain some. The exit code is 1 if a webhook was refused here or could
not be made.`,
		cobra.MatchAll(cobra.ExactArgs(2), func(_ *cobra.Command, args []string) error {
			if args[0] != sourceSvix && args[0] != sourceConvoy {
				return fmt.Errorf("%q is neither %s nor %s", args[0], sourceSvix, sourceConvoy)
			}
			return nil
		}),
		func(flags *pflag.FlagSet) {
			flags.BoolVar(&options.dryRun, "dry-run", false, "show what would be made, and make nothing")
			flags.BoolVar(&options.lossy, "lossy", false, "import webhooks without what cannot be carried over, instead of refusing them")
		},
		func(ctx context.Context, c *call) error {
			file := c.in
			if c.args[1] != "-" {
				opened, err := os.Open(c.args[1])
				if err != nil {
					return err // it names the file
				}
				defer func() { _ = opened.Close() }() // it was only read
				file = opened
			}
			return runImport(ctx, c, options, c.args[0], file)
		})
}

// candidate is one webhook to make.
type candidate struct {
	// origin names the one it comes from, such as "svix ep_2abc".
	origin  string
	webhook client.NewWebhook
	// losses are what cannot be carried over and a receiver would notice; notes are
	// the rest, and what else is to be known.
	losses, notes []string
	// impossible: not even --lossy makes it.
	impossible bool
}

func (c *candidate) lose(format string, args ...any) {
	c.losses = append(c.losses, fmt.Sprintf(format, args...))
}

func (c *candidate) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// marker is what the description of an imported webhook ends with.
func (c *candidate) marker() string { return "[imported from " + c.origin + "]" }

// describe sets the description: the text of the source, and the marker.
func (c *candidate) describe(text string) {
	room := webhook.MaxDescriptionLength - len(c.marker()) - 1
	if len(text) > room {
		c.note("its description is cut short, to %d bytes", room)
		for text = text[:room]; !utf8.ValidString(text); {
			text = text[:len(text)-1] // do not cut a character in two
		}
	}
	c.webhook.Description = strings.TrimLeft(text+" "+c.marker(), " ")
}

// subscribe sets the event types. Those that cannot be a type here are losses.
func (c *candidate) subscribe(types []string) {
	for _, name := range types {
		if name != "*" {
			if fault := webhook.CheckEventType(name); fault != "" {
				c.lose("the event type %q %s", name, fault)
				continue
			}
		}
		c.webhook.EventTypes = append(c.webhook.EventTypes, name)
	}
	switch {
	case len(c.webhook.EventTypes) > webhook.MaxEventTypes:
		c.lose("%d event types: a webhook has at most %d", len(c.webhook.EventTypes), webhook.MaxEventTypes)
		c.webhook.EventTypes = c.webhook.EventTypes[:webhook.MaxEventTypes]
	case len(c.webhook.EventTypes) == 0 && len(types) > 0:
		c.impossible = true // without a type it would get all
	}
}

// send adds a header. One that Fairhook does not let be chosen is a loss.
func (c *candidate) send(name, value string) {
	if webhook.ReservedHeader(name) {
		c.lose("the header %q, which cannot be chosen", name)
		return
	}
	if c.webhook.Headers == nil {
		c.webhook.Headers = map[string]string{}
	}
	c.webhook.Headers[name] = value
}

// destination is what may be shown of a webhook's URL.
func (c *candidate) destination() string {
	u, err := url.Parse(c.webhook.URL)
	if err != nil || u.Host == "" {
		return "(no URL)"
	}
	return u.Scheme + "://" + u.Host
}

// readExport reads a file for import and says which webhooks it has.
func readExport(source string, file io.Reader) ([]*candidate, error) {
	text, err := io.ReadAll(io.LimitReader(file, maxImport+1))
	if err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	if len(text) > maxImport {
		return nil, fmt.Errorf("the file is longer than %d bytes", maxImport)
	}
	var head struct {
		Source string `json:"source"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	if head.Source != source {
		return nil, fmt.Errorf("the file is not one for %s: its source is %q", source, head.Source)
	}
	var export interface{ candidates() []*candidate }
	switch source {
	case sourceSvix:
		export = &svixExport{}
	case sourceConvoy:
		export = &convoyExport{}
	}
	if err := json.Unmarshal(text, export); err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	return export.candidates(), nil
}

// runImport makes the webhooks of a file, or shows what it would make.
func runImport(ctx context.Context, c *call, options importOptions, source string, file io.Reader) error {
	candidates, err := readExport(source, file)
	if err != nil {
		return err
	}
	if len(candidates) == 0 {
		return errors.New("the file has no webhook")
	}
	i := &importer{call: c, options: options, descriptions: map[string][]string{}}
	left := 0
	for _, candidate := range candidates {
		outcome, err := i.try(ctx, candidate)
		if err != nil {
			return fmt.Errorf("%s: %w; what is done is done, and a further run goes on", candidate.origin, err)
		}
		if err := i.show(candidate, outcome); err != nil {
			return err
		}
		if outcome.result == resultRefused || outcome.result == resultFailed {
			left++
		}
	}
	if left > 0 {
		return fmt.Errorf("%d of %d webhooks were not imported", left, len(candidates))
	}
	return nil
}

// What becomes of a candidate.
const (
	resultMade    = "made"
	resultWould   = "would make"
	resultExists  = "exists"
	resultRefused = "refused"
	resultFailed  = "failed"
)

// importOutcome is what became of a candidate, and why where it failed.
type importOutcome struct {
	result    string
	webhookID string
	fault     string
}

// importer is one run.
type importer struct {
	*call
	options      importOptions
	descriptions map[string][]string // of each tenant's webhooks
}

// try imports a candidate. An error is one that the candidates after it would meet too.
func (i *importer) try(ctx context.Context, c *candidate) (importOutcome, error) {
	tenant := c.webhook.Tenant
	if _, known := i.descriptions[tenant]; !known {
		descriptions := []string{}
		for existing, err := range i.Webhooks().List(ctx, client.ListWebhooks{Tenant: tenant, PageSize: 1000}) {
			if err != nil {
				return importOutcome{}, fmt.Errorf("look for what there is: %w", err)
			}
			descriptions = append(descriptions, existing.Description)
		}
		i.descriptions[tenant] = descriptions
	}
	for _, description := range i.descriptions[tenant] {
		if strings.Contains(description, c.marker()) {
			return importOutcome{result: resultExists}, nil
		}
	}
	outcome := importOutcome{result: resultWould}
	switch {
	case c.impossible, len(c.losses) > 0 && !i.options.lossy:
		return importOutcome{result: resultRefused}, nil
	case !i.options.dryRun:
		created, err := i.Webhooks().Create(ctx, c.webhook)
		if refused, ok := errors.AsType[*client.Error](err); ok && refused.Status < 500 && !client.IsRateLimited(err) && !client.IsUnauthorized(err) {
			return importOutcome{result: resultFailed, fault: err.Error()}, nil
		}
		if err != nil {
			return importOutcome{}, err
		}
		outcome = importOutcome{result: resultMade, webhookID: created.ID}
	}
	i.descriptions[tenant] = append(i.descriptions[tenant], c.webhook.Description)
	return outcome, nil
}

// show prints what became of a candidate.
func (i *importer) show(c *candidate, outcome importOutcome) error {
	if i.out.json {
		return i.out.line(struct {
			Origin      string   `json:"origin"`
			Tenant      string   `json:"tenant"`
			Destination string   `json:"destination"`
			Result      string   `json:"result"`
			WebhookID   string   `json:"webhook_id,omitzero"`
			Fault       string   `json:"fault,omitzero"`
			Losses      []string `json:"losses,omitempty"`
			Notes       []string `json:"notes,omitempty"`
		}{c.origin, c.webhook.Tenant, c.destination(), outcome.result, outcome.webhookID, outcome.fault, c.losses, c.notes})
	}
	line := fmt.Sprintf("%-12s  tenant %q  %s  to %s", outcome.result, c.webhook.Tenant, c.origin, c.destination())
	if outcome.webhookID != "" {
		line += "  webhook " + outcome.webhookID
	}
	lines := []string{line}
	if outcome.fault != "" {
		lines = append(lines, outcome.fault)
	}
	for _, loss := range c.losses {
		lines = append(lines, "cannot be carried over: "+loss)
	}
	for _, note := range c.notes {
		lines = append(lines, "note: "+note)
	}
	return i.out.say("%s", strings.Join(lines, "\n              "))
}
