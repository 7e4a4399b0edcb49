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
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	sourceSvix   = "svix"
	sourceConvoy = "convoy"

	// maxImport bounds the file that is imported, in bytes.
	maxImport = 256 << 20
	// importTimeout bounds each call of the API, its retries included.
	importTimeout = 2 * time.Minute
)

// importConfig is what `fairhook import` can be told.
type importConfig struct {
	// URL and Key are of the Fairhook to import into.
	URL string
	Key daemon.SecretString
	// DryRun: show what would be done, and do nothing.
	DryRun bool
	// Lossy: make webhooks without what cannot be carried over, too.
	Lossy bool
}

func (c *importConfig) register(s *daemon.Settings) {
	s.String(&c.URL, "url", "", "the Fairhook to import into, such as https://hooks.example.com")
	s.Secret(&c.Key, "key", "an API key with the scopes read and manage for all tenants of the import")
	s.Bool(&c.DryRun, "dry-run", false, "show what would be made, and make nothing")
	s.Bool(&c.Lossy, "lossy", false, "import webhooks without what cannot be carried over, instead of refusing them")
	s.Required("url", "key")
}

func newImportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import {svix|convoy} FILE",
		Short: "Create the webhooks of a Svix or Convoy installation",
		Long: `Create webhooks from what docs/examples/migrate/collect.py has read out of Svix or
Convoy, with their secrets and headers, through the REST API. FILE may be - for
standard input. docs/migrating.md tells the whole way.

What cannot be carried over is shown with each webhook. If its receiver would notice,
for example because events would not be filtered any more, the webhook is refused,
unless --lossy is given. Webhooks that an earlier run has made are recognised by their
description, and left as they are, so the command can be run again.

The exit code is 1 if a webhook was refused or could not be made. Secrets are not
shown, nor are paths of URLs, which may contain some.`,
		Args: cobra.MatchAll(cobra.ExactArgs(2), func(_ *cobra.Command, args []string) error {
			if args[0] != sourceSvix && args[0] != sourceConvoy {
				return fmt.Errorf("%q is neither %s nor %s", args[0], sourceSvix, sourceConvoy)
			}
			return nil
		}),
	}
	var cfg importConfig
	settings := daemon.NewSettings(cmd.Flags())
	cfg.register(settings)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := settings.Resolve(os.LookupEnv); err != nil {
			return err
		}
		file := cmd.InOrStdin()
		if args[1] != "-" {
			opened, err := os.Open(args[1])
			if err != nil {
				return err // it names the file
			}
			defer func() { _ = opened.Close() }() // it was only read
			file = opened
		}
		return runImport(cmd.Context(), cfg, args[0], file, &console{out: cmd.OutOrStdout()})
	}
	return cmd
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
func runImport(ctx context.Context, cfg importConfig, source string, file io.Reader, out *console) error {
	candidates, err := readExport(source, file)
	if err != nil {
		return err
	}
	if len(candidates) == 0 {
		return errors.New("the file has no webhook")
	}
	c, err := client.New(cfg.URL, cfg.Key.Reveal(), client.WithUserAgent("fairhook-import/"+daemon.Version()))
	if err != nil {
		return err
	}
	i := &importer{cfg: cfg, client: c, out: out, made: map[string][]string{}}
	left := 0
	for _, candidate := range candidates {
		if ctx.Err() != nil {
			return errors.New("stopped before the end; run it again to go on")
		}
		if !i.one(ctx, candidate) {
			left++
		}
		if i.denied {
			return errors.New("the API key is not accepted")
		}
	}
	if left > 0 {
		return fmt.Errorf("%d of %d webhooks were not imported", left, len(candidates))
	}
	return nil
}

// importer is one run.
type importer struct {
	cfg    importConfig
	client *client.Client
	out    *console
	made   map[string][]string // the descriptions of a tenant's webhooks
	denied bool                // Fairhook does not know the key
}

// one imports a candidate and says what became of it. It reports whether the webhook
// is there now, or would be.
func (i *importer) one(ctx context.Context, c *candidate) bool {
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	result, detail := i.try(ctx, c)
	i.out.printf("%-12s  tenant %q  %s  to %s%s\n", result, c.webhook.Tenant, c.origin, c.destination(), detail)
	for _, loss := range c.losses {
		i.out.printf("              cannot be carried over: %s\n", loss)
	}
	for _, note := range c.notes {
		i.out.printf("              note: %s\n", note)
	}
	switch result {
	case resultRefused, resultFailed:
		return false
	}
	return true
}

// What becomes of a candidate.
const (
	resultMade    = "made"
	resultWould   = "would make"
	resultExists  = "exists"
	resultRefused = "refused"
	resultFailed  = "failed"
)

func (i *importer) try(ctx context.Context, c *candidate) (result, detail string) {
	tenant := c.webhook.Tenant
	descriptions, known := i.made[tenant]
	if !known {
		for existing, err := range i.client.Webhooks().List(ctx, client.ListWebhooks{Tenant: tenant, PageSize: 1000}) {
			if err != nil {
				i.denied = client.IsUnauthorized(err)
				return resultFailed, ": look for it: " + err.Error()
			}
			descriptions = append(descriptions, existing.Description)
		}
		i.made[tenant] = descriptions
	}
	for _, description := range descriptions {
		if strings.Contains(description, c.marker()) {
			return resultExists, ""
		}
	}
	switch {
	case c.impossible:
		return resultRefused, ""
	case len(c.losses) > 0 && !i.cfg.Lossy:
		return resultRefused, ""
	case i.cfg.DryRun:
		i.made[tenant] = append(i.made[tenant], c.webhook.Description)
		return resultWould, ""
	}
	created, err := i.client.Webhooks().Create(ctx, c.webhook)
	if err != nil {
		return resultFailed, ": " + err.Error()
	}
	i.made[tenant] = append(i.made[tenant], c.webhook.Description)
	return resultMade, ": webhook " + created.ID
}
