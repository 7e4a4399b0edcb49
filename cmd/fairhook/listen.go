//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairhook/fairhook/pkg/daemon"
)

// listenConfig is what `fairhook listen` can be told.
type listenConfig struct {
	Address  string
	Secret   daemon.SecretString
	Statuses []int
	Delay    time.Duration
	Output   string
}

func newListenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "listen",
		Short: "Receive deliveries, verify them and show them",
		Long: `Receive deliveries as a subscriber would: verify each with --secret, by the Standard
Webhooks project's own library, and show it. Without a secret nothing is verified.

It answers with --status, after --delay: several statuses are answered in turn, and
the last one from then on. What does not verify is answered with 401. The dispatcher
sends to this machine only if its --allow-private-targets says so.`,
		Args: cobra.NoArgs,
	}
	var cfg listenConfig
	flags := pflag.NewFlagSet("listen", pflag.ContinueOnError)
	settings := daemon.NewSettings(flags)
	settings.Secret(&cfg.Secret, "secret", "signing secret of the webhook")
	registerOutput(settings, &cfg.Output)
	flags.Lookup("output").Shorthand = "o"
	cmd.Flags().AddFlagSet(flags)
	// Not settings: what one call does must not come from the environment.
	cmd.Flags().StringVar(&cfg.Address, "address", "127.0.0.1:9000", "address to listen on; port 0 is a free one")
	cmd.Flags().IntSliceVar(&cfg.Statuses, "status", []int{http.StatusNoContent}, "HTTP statuses to answer with, one after another")
	cmd.Flags().DurationVar(&cfg.Delay, "delay", 0, "how long each answer takes")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settings.Resolve(os.LookupEnv); err != nil {
			return err
		}
		return runListen(cmd.Context(), cfg, &console{out: cmd.ErrOrStderr()}, &printer{w: cmd.OutOrStdout(), json: cfg.Output == outputJSON})
	}
	return cmd
}

// runListen receives until ctx ends. notes is for the user, out for what came.
func runListen(ctx context.Context, cfg listenConfig, notes *console, out *printer) error {
	for _, status := range cfg.Statuses {
		if status < 200 || status > 599 {
			return usage("%d is not an HTTP status between 200 and 599", status)
		}
	}
	if len(cfg.Statuses) == 0 {
		return usage("name at least one --status")
	}
	listener, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return fmt.Errorf("%w: choose another with --address", err)
	}
	rc := newReceiver(listener, cfg.Statuses, cfg.Delay)
	if cfg.Secret.IsSet() {
		if err := rc.trust(cfg.Secret.Reveal()); err != nil {
			return errors.Join(usage("%w", err), listener.Close())
		}
	} else {
		rc.trustAll()
		notes.printf("No --secret: nothing is verified.\n")
	}
	rc.start()
	notes.printf("Listening on %s\n", rc.url)
	for {
		select {
		case got := <-rc.received:
			if err := printDelivery(out, got); err != nil {
				return errors.Join(err, rc.close())
			}
			if n := rc.unseen.Swap(0); n > 0 {
				notes.printf("(%d more came too fast to be shown)\n", n)
			}
		case <-ctx.Done():
			return rc.close()
		}
	}
}

// shownDelivery is a delivery as JSON.
type shownDelivery struct {
	At        time.Time       `json:"at"`
	EventID   string          `json:"event_id"`
	Type      string          `json:"type"`
	Attempt   string          `json:"attempt"`
	Verified  *bool           `json:"verified"` // null: nobody looked
	Fault     string          `json:"fault,omitempty"`
	Status    int             `json:"status"` // that was answered
	Headers   http.Header     `json:"headers"`
	Body      json.RawMessage `json:"body,omitempty"` // where it is JSON
	BodyBytes []byte          `json:"body_base64,omitempty"`
}

func printDelivery(out *printer, d delivery) error {
	if !out.json {
		d.body = pretty(d.body)
		return out.say("%s\n    answered %d", d.summary(), d.status)
	}
	shown := shownDelivery{
		At: d.at, EventID: d.header.Get("Webhook-Id"), Type: d.header.Get("Fairhook-Event-Type"), Attempt: d.header.Get("Fairhook-Attempt"),
		Status: d.status, Headers: d.header,
	}
	if d.verified {
		ok := d.fault == nil
		shown.Verified = &ok
	}
	if d.fault != nil {
		shown.Fault = d.fault.Error()
	}
	if json.Valid(d.body) {
		shown.Body = d.body
	} else {
		shown.BodyBytes = d.body
	}
	return out.line(shown)
}

// pretty is JSON with line breaks, and anything else as it is.
func pretty(body []byte) []byte {
	var buf bytes.Buffer
	if json.Indent(&buf, body, "", "  ") != nil {
		return body
	}
	return buf.Bytes()
}
