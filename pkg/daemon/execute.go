package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes of every Fairhook command.
const (
	ExitOK      = 0
	ExitFailure = 1   // it ran and failed
	ExitConfig  = 2   // it did not run: wrong flags, arguments or settings
	ExitKilled  = 130 // a second signal ended it at once
)

// settingsCommand prints a command's settings as JSON. Like cobra's own
// __complete it exists only when it is called: it is how the configuration
// reference is generated.
const settingsCommand = "__settings"

// ErrSignal is the cause (context.Cause) of a command's context once the first
// signal has come.
var ErrSignal = errors.New("stopped by a signal")

// ExitError is an error with an exit code of its own.
type ExitError struct {
	Code int
	Err  error
}

// Error is the error's text.
func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap gives the error.
func (e *ExitError) Unwrap() error { return e.Err }

// Execute runs a command with the process's arguments and returns its exit code.
//
// The command's context ends with the first SIGINT or SIGTERM; the command then
// stops in order and returns nil. A second signal ends the process at once with
// code 130. An error is printed once, on standard error: code 2 for a
// *ConfigError and for flags and arguments that cobra refuses, that of an *ExitError, and
// 1 for any other.
func Execute(cmd *cobra.Command) int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	return execute(cmd, os.Args[1:], signals, os.Stdout, os.Stderr, os.Exit)
}

func execute(cmd *cobra.Command, args []string, signals <-chan os.Signal, stdout, stderr io.Writer, exit func(int)) int {
	if len(args) == 1 && args[0] == settingsCommand {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(DescribeCommand(cmd)); err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", cmd.Name(), err)
			return ExitFailure
		}
		return ExitOK
	}

	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	defer func() { close(done); cancel(nil) }()
	go func() {
		for range 2 {
			select {
			case <-done:
				return
			case <-signals:
				if ctx.Err() != nil {
					exit(ExitKilled)
					return
				}
				cancel(ErrSignal)
			}
		}
	}()

	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	var started bool
	noteStart(cmd, &started)
	ran, err := cmd.ExecuteContextC(ctx)

	var (
		config *ConfigError
		own    *ExitError
	)
	switch {
	case err == nil && !started && !ran.Runnable() && !askedForHelp(ran):
		// cobra has printed the help of a command that only groups others. A
		// script that forgot the subcommand must not take that for success.
		return ExitConfig
	case err == nil:
		return ExitOK
	case errors.As(err, &config):
		fmt.Fprintf(stderr, "%s: %v\nRun '%s --help' for all settings.\n", ran.CommandPath(), err, ran.CommandPath())
		return ExitConfig
	case !started:
		fmt.Fprintf(stderr, "%s: %v\nRun '%s --help' for usage.\n", ran.CommandPath(), err, ran.CommandPath())
		return ExitConfig
	default:
		fmt.Fprintf(stderr, "%s: %v\n", ran.CommandPath(), err)
		if errors.As(err, &own) {
			return own.Code
		}
		return ExitFailure
	}
}

func askedForHelp(cmd *cobra.Command) bool {
	help, err := cmd.Flags().GetBool("help")
	return err == nil && help
}

// noteStart makes every command of the tree say that it was reached. What fails
// before that is cobra refusing flags or arguments, for which it has no error
// type.
func noteStart(cmd *cobra.Command, started *bool) {
	wrap := func(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
		if run == nil {
			return nil
		}
		return func(cmd *cobra.Command, args []string) error {
			*started = true
			return run(cmd, args)
		}
	}
	cmd.PersistentPreRunE, cmd.PreRunE, cmd.RunE = wrap(cmd.PersistentPreRunE), wrap(cmd.PreRunE), wrap(cmd.RunE)
	for _, sub := range cmd.Commands() {
		noteStart(sub, started)
	}
}

// CommandSettings are the settings of one command of a tree.
type CommandSettings struct {
	Command  string    `json:"command"` // its path: "fairhook dev"
	Settings []Setting `json:"settings"`
}

// DescribeCommand lists the settings of a command and of those below it, sorted
// by flag. Commands without settings of their own are left out.
func DescribeCommand(cmd *cobra.Command) []CommandSettings {
	var all []CommandSettings
	var settings []Setting
	visit := func(f *pflag.Flag) {
		if one, ok := f.Value.(*setting); ok {
			settings = append(settings, one.Setting)
		}
	}
	cmd.NonInheritedFlags().VisitAll(visit)
	if len(settings) > 0 {
		all = append(all, CommandSettings{Command: cmd.CommandPath(), Settings: settings})
	}
	for _, sub := range cmd.Commands() {
		all = append(all, DescribeCommand(sub)...)
	}
	return all
}
