//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/daemon"
)

const (
	// defaultListen is where the API listens when nobody else does.
	defaultListen = "127.0.0.1:8080"
	// readyTimeout bounds the start of one process, in which it does little
	// more than connect.
	readyTimeout = 30 * time.Second
	readyPoll    = 50 * time.Millisecond
	// migrateTimeout is for a database with data in it; an empty one takes
	// about a second.
	migrateTimeout = 10 * time.Minute
	// stopTimeout is longer than the processes' own deadline for stopping.
	stopTimeout = 30 * time.Second
)

// devConfig is what `fairhook dev` can be told.
type devConfig struct {
	daemon.Common
	// DataDir keeps Postgres' data, the keys and the processes' logs from run
	// to run. Empty: nothing is kept.
	DataDir string
	// Listen is the API's address. Empty: defaultListen, or a free port when
	// that is taken.
	Listen string
	// BinDir holds ingest, dispatcher and migrate. Empty: the directory of the
	// running program.
	BinDir string
	// EncryptionKey and BootstrapKey are the processes' settings of that name.
	// Unset: those kept in DataDir, else new ones.
	EncryptionKey daemon.SecretString
	BootstrapKey  daemon.SecretString
	// AllowPrivateTargets are networks that webhooks may be in besides this
	// machine's own addresses.
	AllowPrivateTargets []netip.Prefix
	// Verbose shows the processes' logs.
	Verbose bool
	// ExitAfterDemo ends with the demo, in place of staying up.
	ExitAfterDemo bool
}

func newDevCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run all of Fairhook on this machine, with a demo",
		Long: `Run all of Fairhook on this machine: a private Postgres, the schema, ingest, a
dispatcher and a demo receiver. Submit an event, show it as it arrives, and stay
up until Ctrl-C, which stops everything in order.`,
		Args: cobra.NoArgs,
	}
	var cfg devConfig
	settings := daemon.NewSettings(cmd.Flags())
	cfg.Register(settings)
	settings.String(&cfg.DataDir, "data-dir", "", "directory that keeps the data, the keys and the logs from run to run; a temporary one, removed at the end, if not set")
	settings.String(&cfg.Listen, "listen", "", "address of the API; "+defaultListen+", or a free port when that is taken, if not set")
	settings.String(&cfg.BinDir, "bin-dir", "", "directory of the programs ingest, dispatcher and migrate; that of fairhook itself if not set")
	settings.Secret(&cfg.EncryptionKey, "encryption-key", "key that seals the webhooks' secrets: 32 bytes in base64; made if not set")
	settings.Secret(&cfg.BootstrapKey, "bootstrap-key", "API key; made if not set")
	settings.Prefixes(&cfg.AllowPrivateTargets, "allow-private-targets", nil, "private networks that webhooks may be in, besides 127.0.0.0/8 and ::1")
	settings.Bool(&cfg.Verbose, "verbose", false, "show the logs of ingest, dispatcher and migrate")
	settings.Bool(&cfg.ExitAfterDemo, "exit-after-demo", false, "stop after the demo, with exit code 0 if it went well")
	settings.Check("listen", func() error {
		if cfg.Listen == "" {
			return nil
		}
		_, port, err := net.SplitHostPort(cfg.Listen)
		if number, _ := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
			return fmt.Errorf("%q is not an address with a port: write it like %s", cfg.Listen, defaultListen)
		}
		return nil
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settings.Resolve(os.LookupEnv); err != nil {
			return err
		}
		return runDev(cmd.Context(), cfg, os.Environ(), &console{out: cmd.OutOrStdout()})
	}
	return cmd
}

// runDev starts everything, shows the demo, stays up until ctx ends, and stops
// everything in the reverse order. environ is what the processes inherit.
func runDev(ctx context.Context, cfg devConfig, environ []string, out *console) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := &dev{cfg: cfg, environ: environ, out: out, fail: cancel}

	err := d.run(ctx)
	var died *diedError
	switch {
	case errors.As(context.Cause(ctx), &died):
		err = died // whatever failed, failed because of it
	case ctx.Err() != nil && cfg.ExitAfterDemo && !d.demoOver:
		err = errors.New("stopped before the demo was over")
	case ctx.Err() != nil:
		err = nil // it was told to stop
	}
	return errors.Join(err, d.stop())
}

// dev is one run of `fairhook dev`. It belongs to the goroutine of runDev.
type dev struct {
	cfg      devConfig
	environ  []string
	out      *console
	fail     context.CancelCauseFunc // ends the run
	stops    []stopper               // what to stop, in the order in which it was started
	demoOver bool
}

type stopper struct {
	name string
	stop func() error
}

func (d *dev) run(ctx context.Context) error {
	d.out.printf("Fairhook %s\n\n", daemon.Version())
	if err := d.prepare(); err != nil {
		return err
	}
	database, err := d.database(ctx)
	if err != nil {
		return err
	}
	keysMade, err := d.keys()
	if err != nil {
		return err
	}
	if err := d.migrate(ctx, database); err != nil {
		return err
	}
	rc, err := d.receiver()
	if err != nil {
		return err
	}
	api, err := d.ingest(ctx, database)
	if err != nil {
		return err
	}
	c, err := client.New(api, d.cfg.BootstrapKey.Reveal(), client.WithUserAgent("fairhook-dev/"+daemon.Version()))
	if err != nil {
		return fmt.Errorf("make the API client: %w", err)
	}
	if err := d.adopt(ctx, c, keysMade); err != nil {
		return err
	}
	if err := d.dispatcher(ctx, database); err != nil {
		return err
	}
	demo := &demo{api: api, key: d.cfg.BootstrapKey.Reveal(), client: c, receiver: rc, out: d.out}
	if err := demo.run(ctx); err != nil {
		return err
	}
	d.demoOver = true
	if d.cfg.ExitAfterDemo {
		return nil
	}
	demo.printCurl()
	demo.watch(ctx)
	return nil
}

func (d *dev) onStop(name string, stop func() error) {
	d.stops = append(d.stops, stopper{name, stop})
}

// watch ends the run when something that should stay ends.
func (d *dev) watch(done <-chan struct{}, died func() *diedError) {
	go func() {
		<-done
		d.fail(died()) // without effect when the run has ended already
	}()
}

// stop stops, last started first, everything that was started.
func (d *dev) stop() error {
	if len(d.stops) == 0 {
		return nil
	}
	d.fail(nil) // from here on an end is no accident
	d.out.printf("\nStopping.\n")
	var faults []error
	for _, s := range slices.Backward(d.stops) {
		if err := s.stop(); err != nil {
			faults = append(faults, fmt.Errorf("stop %s: %w", s.name, err))
			continue
		}
		d.out.printf("    %s stopped\n", s.name)
	}
	return errors.Join(faults...)
}
