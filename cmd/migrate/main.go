// Command migrate brings the database's schema up to what this build needs, and
// down again. It is the only thing that changes the schema: run it in CI and
// before a rollout. It also seals secrets anew when the encryption key is replaced.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/postgres"
)

func main() {
	os.Exit(daemon.Execute(newCommand()))
}

// config is what every subcommand takes.
type config struct {
	daemon.Common
	// Timeout bounds a whole call, waiting for another migration and for
	// tables in use included.
	Timeout time.Duration
}

const (
	about = `Brings the database's schema, Fairhook's and River's, up to what this build
needs, and down again. Everything lives in the Postgres schema "fairhook".

It needs a direct connection: it uses --listen-database-url where that is set,
and --database-url otherwise. Several calls at once wait for each other, and each
step runs once.

Exit codes: 0 done, 1 failed or (validate) something is missing, 2 wrong
configuration.`

	aboutUp = `Applies every step that is missing and makes the partitions of the coming days.
Each step is a transaction of its own: after a failure, run it again. A table
that is in use is given back to its users after 3 s and tried again until
--timeout.`

	aboutDown = `Reverts the newest step, or all down to --to, in one transaction. --to 0 removes
everything, River's part and the schema included; what is not Fairhook's is left
alone, and the schema with it. Services must not be running.`

	aboutReseal = `Seals every secret in the database anew under --encryption-key, those that are
sealed under one of --old-encryption-keys included, and says how many it did.
Afterwards nothing needs the old keys. Run it when all services have the new key.
They need not stop, and a run that was broken off is simply run again.
docs/encryption-keys.md has the whole procedure.`

	aboutStatus   = `Lists every step this build knows, and whether the database has it. Changes nothing.`
	aboutValidate = `Exits with 1 if a step is missing or the schema is too new for this build's
services, and says so. Changes nothing.`
)

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "migrate",
		Short: "Change the database's schema",
		Long:  about,
	}
	var cfg config
	settings := daemon.NewSettings(root.PersistentFlags())
	cfg.Register(settings)
	settings.Required("database-url")
	settings.Duration(&cfg.Timeout, "timeout", 10*time.Minute, "how long the whole call may take")
	settings.Check("timeout", func() error {
		if cfg.Timeout <= 0 {
			return errors.New("must be more than 0s")
		}
		return nil
	})

	type action func(ctx context.Context, migrator *postgres.Migrator, out io.Writer) error
	add := func(name, short, long string, act action) *cobra.Command {
		cmd := &cobra.Command{
			Use: name, Short: short, Long: long, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				if err := settings.Resolve(os.LookupEnv); err != nil {
					return err
				}
				ctx, cancel := context.WithTimeout(cmd.Context(), cfg.Timeout)
				defer cancel()
				logger, _ := cfg.NewLogger(cmd.ErrOrStderr(), "migrate", daemon.NewInstanceID())
				migrator, err := postgres.OpenMigrator(ctx, cfg.DirectDatabaseURL().Reveal(), logger)
				if err != nil {
					return err
				}
				return errors.Join(act(ctx, migrator, cmd.OutOrStdout()), migrator.Close())
			},
		}
		root.AddCommand(cmd)
		return cmd
	}

	root.AddCommand(newReseal(settings, &cfg))
	add("up", "Apply every missing step", aboutUp, up)
	add("status", "List the steps", aboutStatus, status)
	add("validate", "Fail if a step is missing", aboutValidate, validate)

	// Not settings: what one call reverts must not come from the environment.
	var to int
	var discardData bool
	var cmd *cobra.Command
	cmd = add("down", "Revert steps", aboutDown, func(ctx context.Context, migrator *postgres.Migrator, out io.Writer) error {
		opts := postgres.DownOptions{DiscardData: discardData}
		if cmd.Flags().Changed("to") {
			opts.To = &to
		}
		return down(ctx, migrator, out, opts)
	})
	cmd.Flags().IntVar(&to, "to", 0, "the version of Fairhook's schema to end at; 0 removes everything; if not given, one below the current")
	cmd.Flags().BoolVar(&discardData, "discard-data", false, "allow steps that drop tables, or columns of tables, that hold rows")
	return root
}

func up(ctx context.Context, migrator *postgres.Migrator, out io.Writer) error {
	migrator.OnStep = printer(out, "up")
	if err := migrator.Up(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "the schema is up to date")
	return nil
}

func down(ctx context.Context, migrator *postgres.Migrator, out io.Writer, opts postgres.DownOptions) error {
	migrator.OnStep = printer(out, "down")
	schemaKept, err := migrator.Down(ctx, opts)
	if err != nil {
		return err
	}
	if schemaKept != "" {
		fmt.Fprintf(out, "the schema %s was left in place: %s\n", postgres.Schema, schemaKept)
	}
	fmt.Fprintln(out, "done")
	return nil
}

func printer(out io.Writer, direction string) func(postgres.Step) {
	return func(step postgres.Step) {
		fmt.Fprintf(out, "%s %s %d: %s (%s)\n", direction, step.Source, step.Version, step.Name, step.Took.Round(time.Millisecond))
	}
}

func status(ctx context.Context, migrator *postgres.Migrator, out io.Writer) error {
	steps, err := migrator.Status(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SOURCE\tVERSION\tNAME\tSTATE")
	for _, step := range steps {
		state := "missing"
		if step.Applied {
			state = "applied"
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", step.Source, step.Version, step.Name, state)
	}
	return table.Flush()
}

func validate(ctx context.Context, migrator *postgres.Migrator, out io.Writer) error {
	if err := migrator.Validate(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "the schema is what this build needs")
	return nil
}
