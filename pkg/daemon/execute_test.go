package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

// newTree is a command with two below it: "run", which does what run says, and
// "group", which only groups.
func newTree(run func(ctx context.Context) error) *cobra.Command {
	root := &cobra.Command{Use: "tool"}
	sub := &cobra.Command{Use: "run", Args: cobra.NoArgs}
	var cfg Common
	settings := NewSettings(sub.Flags())
	cfg.Register(settings)
	settings.Required("database-url")
	sub.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settings.Resolve(env("FAIRHOOK_DATABASE_URL", "postgres://host/db")); err != nil {
			return err
		}
		return run(cmd.Context())
	}
	group := &cobra.Command{Use: "group"}
	group.AddCommand(&cobra.Command{Use: "leaf", RunE: func(*cobra.Command, []string) error { return nil }})
	root.AddCommand(sub, group)
	return root
}

func TestExecute(t *testing.T) {
	t.Parallel()
	nothing := func(context.Context) error { return nil }
	failing := func(context.Context) error { return errors.New("open the door: it is stuck") }
	refused := func(context.Context) error {
		return fmt.Errorf("knock: %w", &ExitError{Code: 7, Err: errors.New("nobody opens")})
	}

	for _, tc := range []struct {
		name   string
		run    func(context.Context) error
		args   []string
		code   int
		stderr []string // each once
	}{
		{"ReturnsZeroForSuccess", nothing, []string{"run"}, 0, nil},
		{"ReturnsOneForAFailureAndPrintsItOnce", failing, []string{"run"}, 1, []string{"tool run: open the door: it is stuck\n"}},
		{"ReturnsTheCodeThatAnErrorHas", refused, []string{"run"}, 7, []string{"tool run: knock: nobody opens\n"}},
		{"ReturnsTwoForBadSettings", nothing, []string{"run", "--log-level=loud", "--log-format=xml"}, 2, []string{"--log-level (FAIRHOOK_LOG_LEVEL)", "--log-format (FAIRHOOK_LOG_FORMAT)", "tool run --help"}},
		{"ReturnsTwoForAnUnknownFlag", nothing, []string{"run", "--no-such"}, 2, []string{"unknown flag: --no-such", "tool run --help"}},
		{"ReturnsTwoForAnUnknownCommand", nothing, []string{"rum"}, 2, []string{`unknown command "rum"`}},
		{"ReturnsTwoForArgumentsThatAreNotTaken", nothing, []string{"run", "extra"}, 2, []string{"extra"}},
		{"ReturnsTwoForAMissingSubcommand", nothing, []string{"group"}, 2, nil},
		{"ReturnsTwoForNoCommand", nothing, nil, 2, nil},
		{"ReturnsZeroForHelp", nothing, []string{"group", "--help"}, 0, nil},
		{"ReturnsZeroForTheHelpCommand", nothing, []string{"help", "group"}, 0, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			code := execute(newTree(tc.run), tc.args, nil, &stdout, &stderr, func(int) { t.Error("the process ended") })
			if code != tc.code {
				t.Errorf("got code %d, want %d; stderr %q", code, tc.code, stderr.String())
			}
			if tc.stderr == nil && stderr.Len() > 0 {
				t.Errorf("stderr is %q", stderr.String())
			}
			for _, want := range tc.stderr {
				if strings.Count(stderr.String(), want) != 1 {
					t.Errorf("stderr %q does not have %q once", stderr.String(), want)
				}
			}
		})
	}

	t.Run("EndsTheContextWithTheFirstSignal", func(t *testing.T) {
		t.Parallel()
		signals := make(chan os.Signal, 2)
		var stderr bytes.Buffer
		code := execute(newTree(func(ctx context.Context) error {
			signals <- syscall.SIGTERM
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), ErrSignal) {
				t.Errorf("the cause is %v", context.Cause(ctx))
			}
			return nil
		}), []string{"run"}, signals, &bytes.Buffer{}, &stderr, func(int) { t.Error("the process ended") })
		if code != ExitOK || stderr.Len() > 0 {
			t.Errorf("got %d, stderr %q", code, stderr.String())
		}
	})

	t.Run("EndsTheProcessWithTheSecondSignal", func(t *testing.T) {
		t.Parallel()
		signals := make(chan os.Signal, 2)
		exited := make(chan int, 1)
		execute(newTree(func(ctx context.Context) error {
			signals <- syscall.SIGINT
			<-ctx.Done()
			signals <- syscall.SIGINT
			if code := <-exited; code != ExitKilled {
				t.Errorf("got code %d", code)
			}
			return nil
		}), []string{"run"}, signals, &bytes.Buffer{}, &bytes.Buffer{}, func(code int) { exited <- code })
	})

	t.Run("PrintsItsSettingsForTheReference", func(t *testing.T) {
		t.Parallel()
		var stdout bytes.Buffer
		if code := execute(newTree(nothing), []string{"__settings"}, nil, &stdout, &bytes.Buffer{}, nil); code != ExitOK {
			t.Fatalf("got code %d", code)
		}
		var got []CommandSettings
		if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].Command != "tool run" {
			t.Fatalf("got %+v", got)
		}
		var names []string
		for _, s := range got[0].Settings {
			names = append(names, s.Flag)
			if s.Required != (s.Flag == "database-url") {
				t.Errorf("required is wrong in %+v", s)
			}
		}
		if want := []string{"database-url", "listen-database-url", "log-format", "log-level"}; !slices.Equal(names, want) {
			t.Errorf("got %v, want %v", names, want)
		}
	})
}
