//go:build unix

// Command fairhook is the developer's and operator's tool.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fairhook/fairhook/pkg/daemon"
)

func main() {
	os.Exit(daemon.Execute(newCommand()))
}

func newCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fairhook",
		Short: "The developer's and operator's tool of Fairhook, the webhook sender",
	}
	cmd.AddCommand(
		newDevCommand(), newListenCommand(), newSendCommand(), newEventCommand(), newDeliveryCommand(), newWebhookCommand(),
		newKeyCommand(), newInstancesCommand(), newImportCommand(), newBenchCommand(), newVersionCommand(),
	)
	return cmd
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "fairhook", daemon.Version())
			return err
		},
	}
}
