//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/daemon"
)

// Exit codes of the commands that talk to an API, besides those of all commands.
const (
	exitRefused     = 3 // the API says no: not found, not allowed, not valid
	exitUnavailable = 4 // no answer, or one that says to come back later
)

const exitCodes = `

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by the API, 4 the API cannot
be reached or is busy.`

// defaultURL is where fairhook dev has its API.
const defaultURL = "http://" + defaultListen

// remote is what a command that talks to an API can be told about that.
type remote struct {
	URL     string
	Key     daemon.SecretString
	Timeout time.Duration
	Output  string
}

func (r *remote) register(s *daemon.Settings) {
	s.String(&r.URL, "url", defaultURL, "address of the API")
	s.Secret(&r.Key, "key", "API key")
	s.Required("key")
	s.Duration(&r.Timeout, "timeout", time.Minute, "how long the whole command may take, repetitions included; 0: as long as it takes")
	registerOutput(s, &r.Output)
}

// registerOutput declares the form of what a command prints.
func registerOutput(s *daemon.Settings, p *string) {
	s.String(p, "output", outputTable, "form of the output: table or json")
	s.Check("output", func() error {
		if *p != outputTable && *p != outputJSON {
			return fmt.Errorf("%q is neither %s nor %s", *p, outputTable, outputJSON)
		}
		return nil
	})
}

// call is one run of a command that talks to an API.
type call struct {
	*client.Client
	args []string
	in   io.Reader
	out  *printer
	// untilStopped ends with the first signal alone, whatever --timeout says.
	untilStopped context.Context
}

// remoteCommand makes a command that talks to an API. declare, which may be nil,
// declares what else it can be told: flags only, since what one call does must not come
// from the environment.
func remoteCommand(use, short, long string, args cobra.PositionalArgs, declare func(*pflag.FlagSet), run func(context.Context, *call) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long + exitCodes, Args: args}
	flags := pflag.NewFlagSet(cmd.Name(), pflag.ContinueOnError)
	settings := daemon.NewSettings(flags)
	var r remote
	r.register(settings)
	flags.Lookup("output").Shorthand = "o"
	cmd.Flags().AddFlagSet(flags)
	if declare != nil {
		declare(cmd.Flags())
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := settings.Resolve(os.LookupEnv); err != nil {
			return err
		}
		ctx := cmd.Context()
		if r.Timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, r.Timeout)
			defer cancel()
		}
		c, err := client.New(r.URL, r.Key.Reveal(), client.WithUserAgent("fairhook-cli/"+daemon.Version()))
		if err != nil {
			return usage("%w", err)
		}
		return coded(run(ctx, &call{
			Client: c, args: args, in: cmd.InOrStdin(), out: &printer{w: cmd.OutOrStdout(), json: r.Output == outputJSON}, untilStopped: cmd.Context(),
		}))
	}
	return cmd
}

// usage is an error in what a command was told.
func usage(format string, args ...any) error {
	return &daemon.ExitError{Code: daemon.ExitConfig, Err: fmt.Errorf(format, args...)}
}

// group makes a command that only groups others.
func group(use, short string, cmds ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short}
	cmd.AddCommand(cmds...)
	return cmd
}

// coded gives an error its exit code.
func coded(err error) error {
	var (
		refused *client.Error
		own     *daemon.ExitError
	)
	switch {
	case err == nil, errors.As(err, &own):
		return err
	case client.IsUnavailable(err), client.IsRateLimited(err):
		return &daemon.ExitError{Code: exitUnavailable, Err: err}
	case errors.As(err, &refused) && refused.Status >= 400 && refused.Status < 500:
		return &daemon.ExitError{Code: exitRefused, Err: err}
	case errors.As(err, &refused), isUnreachable(err):
		return &daemon.ExitError{Code: exitUnavailable, Err: err}
	}
	return err
}

// isUnreachable reports whether an error is of the way to the API.
func isUnreachable(err error) bool {
	var network interface{ Timeout() bool } // of package net, and of url.Error
	return errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded)
}

// printer is where a command prints what it was asked for.
type printer struct {
	w    io.Writer
	json bool
}

// value prints one thing: as JSON, or by its fields.
func (p *printer) value(v any, fields ...field) error {
	if p.json {
		return p.line(v)
	}
	table := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	for _, f := range fields {
		if f.text != "" {
			fmt.Fprintf(table, "%s\t%s\n", f.name, f.text)
		}
	}
	return table.Flush()
}

// field is a line of what is printed of one thing; one without text is left out.
type field struct{ name, text string }

// line prints a JSON document on a line of its own.
func (p *printer) line(v any) error {
	encoder := json.NewEncoder(p.w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// item prints one of many things as they come.
func (p *printer) item(v any, row []string) error {
	if p.json {
		return p.line(v)
	}
	return p.say("%s", strings.Join(row, "  "))
}

// say prints a sentence for people.
func (p *printer) say(format string, args ...any) error {
	if p.json {
		return nil
	}
	_, err := fmt.Fprintf(p.w, format+"\n", args...)
	return err
}

// printList prints up to most things of a list, or all if that is 0: a JSON document a
// line, or a table.
func printList[T any](p *printer, items iter.Seq2[*T, error], most int, heading string, row func(*T) []string) error {
	table := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	n := 0
	for item, err := range items {
		if err != nil {
			return errors.Join(table.Flush(), err)
		}
		if most > 0 && n == most {
			return errors.Join(table.Flush(), p.say("... and more: --limit says how many to show, 0 all"))
		}
		n++
		if p.json {
			if err := p.line(item); err != nil {
				return err
			}
			continue
		}
		if n == 1 {
			fmt.Fprintln(table, strings.ToUpper(heading))
		}
		fmt.Fprintln(table, strings.Join(row(item), "\t"))
	}
	if n == 0 {
		return p.say("none")
	}
	return table.Flush()
}

// registerLimit declares how many things a list shows.
func registerLimit(flags *pflag.FlagSet, p *int) {
	flags.IntVar(p, "limit", 50, "how many to show, the newest first; 0: all")
}

// when is a time as tables show it; nothing for none.
func when(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

// orNone is a text, or a dash.
func orNone(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// shown is what a pointer points to, printed; nothing for nil.
func shown[T any](p *T) string {
	if p == nil {
		return ""
	}
	return fmt.Sprint(*p)
}

// readArgument is what an argument stands for: itself, the file it names after an "@",
// or for "-" what is on standard input.
func readArgument(arg string, in io.Reader) ([]byte, error) {
	if arg == "-" {
		return io.ReadAll(in)
	}
	if name, isFile := strings.CutPrefix(arg, "@"); isFile {
		return os.ReadFile(name)
	}
	return []byte(arg), nil
}
