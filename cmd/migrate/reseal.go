package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/reseal"
	"github.com/fairhook/fairhook/pkg/seal"
)

// newReseal is the one subcommand that needs the encryption keys; common are the
// settings of all of them.
func newReseal(common *daemon.Settings, cfg *config) *cobra.Command {
	var keys seal.Keys
	cmd := &cobra.Command{Use: "reseal", Short: "Seal secrets anew under the current encryption key", Long: aboutReseal, Args: cobra.NoArgs}
	settings := daemon.NewSettings(cmd.Flags())
	daemon.EncryptionKeys(settings, keys.SetCurrent, keys.SetOld)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := common.Resolve(os.LookupEnv); err != nil {
			return err
		}
		if err := settings.Resolve(os.LookupEnv); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), cfg.Timeout)
		defer cancel()
		return runReseal(ctx, cfg.DirectDatabaseURL().Reveal(), keys.Box(), cmd.OutOrStdout())
	}
	return cmd
}

func runReseal(ctx context.Context, databaseURL string, box *seal.Box, out io.Writer) error {
	pool, err := postgres.Open(ctx, databaseURL, "fairhook migrate", 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := postgres.CheckSchema(ctx, pool); err != nil {
		return err
	}
	counts, err := reseal.Run(ctx, pool, box)
	for _, c := range counts {
		fmt.Fprintf(out, "%s: %d sealed anew, %d cannot be opened\n", c.Column, c.Resealed, c.Failed)
	}
	if err != nil {
		return fmt.Errorf("seal secrets anew: %w", err)
	}
	fmt.Fprintf(out, "everything is sealed under the key with the id %s\n", box.Current())
	return nil
}
