package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"pgregory.net/rapid"
)

type everyKind struct {
	text     string
	number   int
	big      int64
	on       bool
	wait     time.Duration
	list     []string
	networks []netip.Prefix
	secret   SecretString
}

func newEveryKind() (*everyKind, *Settings, *pflag.FlagSet) {
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	s := NewSettings(flags)
	v := &everyKind{}
	s.String(&v.text, "some-text", "hello", "a text")
	s.Int(&v.number, "some-number", 7, "a number")
	s.Int64(&v.big, "some-big", 0, "a big number")
	s.Bool(&v.on, "some-switch", false, "a switch")
	s.Duration(&v.wait, "some-wait", 25*time.Second, "a wait")
	s.Strings(&v.list, "some-list", []string{"a", "b"}, "a list")
	s.Prefixes(&v.networks, "some-networks", nil, "some networks")
	s.Secret(&v.secret, "some-secret", "a secret")
	return v, s, flags
}

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func mustParse(t *testing.T, flags *pflag.FlagSet, args ...string) {
	t.Helper()
	if err := flags.Parse(args); err != nil {
		t.Fatalf("parse %q: %v", args, err)
	}
}

func problems(t *testing.T, err error) []Problem {
	t.Helper()
	var config *ConfigError
	if !errors.As(err, &config) {
		t.Fatalf("got %v, want a *ConfigError", err)
	}
	return config.Problems
}

func TestSettings(t *testing.T) {
	t.Parallel()

	t.Run("TakeTheDefaultWhenNothingIsSaid", func(t *testing.T) {
		t.Parallel()
		v, s, flags := newEveryKind()
		mustParse(t, flags)
		if err := s.Resolve(env()); err != nil {
			t.Fatal(err)
		}
		if v.text != "hello" || v.number != 7 || v.big != 0 || v.on || v.wait != 25*time.Second ||
			!slices.Equal(v.list, []string{"a", "b"}) || v.networks != nil || v.secret.IsSet() {
			t.Errorf("got %+v", v)
		}
	})

	t.Run("TakeTheEnvironmentOverTheDefault", func(t *testing.T) {
		t.Parallel()
		v, s, flags := newEveryKind()
		mustParse(t, flags)
		err := s.Resolve(env("FAIRHOOK_SOME_TEXT", " kept as it is ", "FAIRHOOK_SOME_NUMBER", " 12 ",
			"FAIRHOOK_SOME_BIG", "9007199254740993", "FAIRHOOK_SOME_SWITCH", "on", "FAIRHOOK_SOME_WAIT", "1h30m",
			"FAIRHOOK_SOME_LIST", " x, ,y,", "FAIRHOOK_SOME_NETWORKS", "127.0.0.0/8, ::1", "FAIRHOOK_SOME_SECRET", "s3cret"))
		if err != nil {
			t.Fatal(err)
		}
		networks := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
		if v.text != " kept as it is " || v.number != 12 || v.big != 9007199254740993 || !v.on || v.wait != 90*time.Minute ||
			!slices.Equal(v.list, []string{"x", "y"}) || !slices.Equal(v.networks, networks) || v.secret.Reveal() != "s3cret" {
			t.Errorf("got %+v, secret %q", v, v.secret.Reveal())
		}
	})

	t.Run("TakeTheFlagOverTheEnvironment", func(t *testing.T) {
		t.Parallel()
		v, s, flags := newEveryKind()
		mustParse(t, flags, "--some-number=3", "--some-switch", "--some-list=p", "--some-list", "q,r", "--some-text=")
		err := s.Resolve(env("FAIRHOOK_SOME_NUMBER", "12", "FAIRHOOK_SOME_SWITCH", "false",
			"FAIRHOOK_SOME_LIST", "x", "FAIRHOOK_SOME_TEXT", "env"))
		if err != nil {
			t.Fatal(err)
		}
		if v.number != 3 || !v.on || !slices.Equal(v.list, []string{"p", "q", "r"}) || v.text != "" {
			t.Errorf("got %+v", v)
		}
	})

	t.Run("IgnoreABadVariableThatAFlagOverrides", func(t *testing.T) {
		t.Parallel()
		v, s, flags := newEveryKind()
		mustParse(t, flags, "--some-number=3")
		if err := s.Resolve(env("FAIRHOOK_SOME_NUMBER", "many")); err != nil || v.number != 3 {
			t.Errorf("got %d, %v", v.number, err)
		}
	})

	t.Run("TakeAnEmptyVariableForNotSet", func(t *testing.T) {
		t.Parallel()
		v, s, flags := newEveryKind()
		mustParse(t, flags)
		if err := s.Resolve(env("FAIRHOOK_SOME_NUMBER", "", "FAIRHOOK_SOME_TEXT", "")); err != nil {
			t.Fatal(err)
		}
		if v.number != 7 || v.text != "hello" {
			t.Errorf("got %+v", v)
		}
	})

	t.Run("ReportEverythingThatIsWrongAtOnce", func(t *testing.T) {
		t.Parallel()
		v, s, flags := newEveryKind()
		s.Required("some-secret")
		s.Check("some-text", func() error { return errors.New("must rhyme") })
		s.Check("some-number", func() error { return errors.New("never runs, since the number could not be read") })
		mustParse(t, flags, "--some-number=many", "--some-wait=25", "--some-switch=maybe")
		got := problems(t, s.Resolve(env("FAIRHOOK_SOME_BIG", "99999999999999999999", "FAIRHOOK_SOME_NETWORKS", "10.0.0.1/8")))
		want := []Problem{
			{"--some-number", "FAIRHOOK_SOME_NUMBER", `"many", given as flag, is not a whole number: write it like 250, without separators or units`},
			{"--some-big", "FAIRHOOK_SOME_BIG", `"99999999999999999999", set in the environment, is too large a number`},
			{"--some-switch", "FAIRHOOK_SOME_SWITCH", `"maybe", given as flag, is neither true nor false`},
			{"--some-wait", "FAIRHOOK_SOME_WAIT", `"25", given as flag, is not a duration: write it with a unit, like 500ms, 30s, 5m, 2h or 30d`},
			{"--some-networks", "FAIRHOOK_SOME_NETWORKS", `"10.0.0.1/8", set in the environment, contains "10.0.0.1/8", an address inside a network: write 10.0.0.0/8 for the network or 10.0.0.1 for the address`},
			{"--some-secret", "FAIRHOOK_SOME_SECRET", `is required: give the flag or set the environment variable`},
			{"--some-text", "FAIRHOOK_SOME_TEXT", `must rhyme`},
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%v\nwant\n%v", got, want)
		}
		if v.number != 7 || v.wait != 25*time.Second {
			t.Errorf("what could not be read lost its default: %+v", v)
		}
	})

	t.Run("NameEachFlagAndVariableInTheErrorsText", func(t *testing.T) {
		t.Parallel()
		_, s, flags := newEveryKind()
		s.Required("some-secret")
		mustParse(t, flags, "--some-number=many")
		text := s.Resolve(env()).Error()
		for _, want := range []string{"2 problems", "\n  --some-number (FAIRHOOK_SOME_NUMBER): ", "\n  --some-secret (FAIRHOOK_SOME_SECRET): "} {
			if !strings.Contains(text, want) {
				t.Errorf("%q lacks %q", text, want)
			}
		}
	})

	t.Run("RefuseARequiredFlagThatIsGivenEmpty", func(t *testing.T) {
		t.Parallel()
		_, s, flags := newEveryKind()
		s.Required("some-secret")
		mustParse(t, flags, "--some-secret=")
		if got := problems(t, s.Resolve(env("FAIRHOOK_SOME_SECRET", "x"))); len(got) != 1 || got[0].Detail != "must not be empty" {
			t.Errorf("got %v", got)
		}
	})

	t.Run("CheckValuesAgainstEachOtherAfterAllAreRead", func(t *testing.T) {
		t.Parallel()
		v, s, flags := newEveryKind()
		s.Check("some-text", func() error {
			if int64(v.number) > v.big {
				return errors.New("some-number must not be above some-big")
			}
			return nil
		})
		mustParse(t, flags)
		if got := problems(t, s.Resolve(env())); len(got) != 1 {
			t.Errorf("got %v", got)
		}
		if err := s.Resolve(env("FAIRHOOK_SOME_BIG", "8")); err != nil {
			t.Error(err)
		}
	})

	t.Run("ShowVariableAndDefaultOfEachFlagInHelp", func(t *testing.T) {
		t.Parallel()
		_, s, flags := newEveryKind()
		s.Required("some-secret")
		lines := strings.Split(flags.FlagUsages(), "\n")
		for _, want := range []struct{ flag, env, def string }{
			{"--some-text", "FAIRHOOK_SOME_TEXT", `(default hello)`},
			{"--some-number", "FAIRHOOK_SOME_NUMBER", "(default 7)"},
			{"--some-big", "FAIRHOOK_SOME_BIG", "(default 0)"},
			{"--some-switch", "FAIRHOOK_SOME_SWITCH", "(default false)"},
			{"--some-wait", "FAIRHOOK_SOME_WAIT", "(default 25s)"},
			{"--some-list", "FAIRHOOK_SOME_LIST", "(default a,b)"},
			{"--some-networks", "FAIRHOOK_SOME_NETWORKS", "(default none)"},
			{"--some-secret", "FAIRHOOK_SOME_SECRET", "(required)"},
		} {
			i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, want.flag) })
			if i < 0 {
				t.Errorf("%s is not in the help", want.flag)
				continue
			}
			line := strings.ReplaceAll(lines[i], `"`, "")
			if !strings.Contains(line, "["+want.env+"]") || strings.Count(line, want.def) != 1 || strings.Count(line, "(") != 1 {
				t.Errorf("help line %q lacks %s or one %s", lines[i], want.env, want.def)
			}
		}
	})

	t.Run("NeverShowASecretInHelpOrInAnError", func(t *testing.T) {
		t.Parallel()
		v, s, flags := newEveryKind()
		s.Check("some-secret", func() error { return fmt.Errorf("is wrong: %v", v.secret) })
		mustParse(t, flags, "--some-secret=hunter2")
		text := s.Resolve(env()).Error() + flags.FlagUsages()
		if strings.Contains(text, "hunter2") {
			t.Errorf("the secret is in %q", text)
		}
	})

	t.Run("DescribeThemselves", func(t *testing.T) {
		t.Parallel()
		_, s, _ := newEveryKind()
		s.Required("some-secret")
		got := s.Describe()
		if len(got) != 8 {
			t.Fatalf("got %d settings", len(got))
		}
		if want := (Setting{Flag: "some-wait", Env: "FAIRHOOK_SOME_WAIT", Type: "duration", Default: "25s", Usage: "a wait"}); got[4] != want {
			t.Errorf("got %+v, want %+v", got[4], want)
		}
		if want := (Setting{Flag: "some-secret", Env: "FAIRHOOK_SOME_SECRET", Type: "secret", Usage: "a secret", Required: true, Secret: true}); got[7] != want {
			t.Errorf("got %+v, want %+v", got[7], want)
		}
	})

	t.Run("TakeRulesBeforeTheSettingIsDeclared", func(t *testing.T) {
		t.Parallel()
		flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
		s := NewSettings(flags)
		var secret SecretString
		var text string
		s.Required("some-secret")
		s.Check("some-text", func() error { return errors.New("must rhyme") })
		s.Secret(&secret, "some-secret", "a secret")
		s.String(&text, "some-text", "x", "a text")
		mustParse(t, flags)
		if got := problems(t, s.Resolve(env())); len(got) != 2 || got[0].Flag != "--some-secret" || got[1].Detail != "must rhyme" {
			t.Errorf("got %v", got)
		}
		if !s.Describe()[0].Required || !strings.Contains(flags.FlagUsages(), "[FAIRHOOK_SOME_SECRET] (required)") {
			t.Errorf("it is not shown as required: %s", flags.FlagUsages())
		}
	})

	t.Run("PanicOnARuleForASettingThatIsNotThere", func(t *testing.T) {
		t.Parallel()
		for _, rule := range []func(*Settings){
			func(s *Settings) { s.Required("some-tetx") },
			func(s *Settings) { s.Check("some-tetx", func() error { return nil }) },
		} {
			_, s, _ := newEveryKind()
			rule(s)
			func() {
				defer func() {
					if recover() == nil {
						t.Error("no panic")
					}
				}()
				_ = s.Resolve(env())
			}()
		}
	})
}

// What Describe prints as the default, read back, is the default.
func TestDurationsReadBackAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Min(0).Draw(t, "d"))
		if rapid.Bool().Draw(t, "whole minutes") {
			d = d.Truncate(time.Minute)
		}
		text := formatDuration(d)
		back, err := parseDuration(text)
		if err != nil || back != d {
			t.Fatalf("%d became %q became %d (%v)", d, text, back, err)
		}
	})
	for d, want := range map[time.Duration]string{0: "0s", time.Hour: "1h", 30 * 24 * time.Hour: "30d", 36 * time.Hour: "36h", 90 * time.Minute: "1h30m", 10 * time.Second: "10s", 70 * time.Second: "1m10s", time.Hour + 30*time.Second: "1h0m30s"} {
		if got := formatDuration(d); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestDurationsMayBeginWithDays(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"30d": 30 * 24 * time.Hour, "1d12h": 36 * time.Hour, " 0d ": 0, "0d5m": 5 * time.Minute} {
		if got, err := parseDuration(text); got != want || err != nil {
			t.Errorf("%q is %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"d", "-1d", "1.5d", "1d-1h", "0d-1h", "1d1d", "1h1d", "1d 1h", "1d+1h", "106752d", "106751d24h", "99999999999999999999d"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
}

func FuzzPrefixes(f *testing.F) {
	for _, seed := range []string{"", "127.0.0.0/8", "::1", "10.0.0.1/8", "::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "fe80::1%eth0/64", "1.2.3.4/33", "a,b", ",,"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		prefixes, err := parsePrefixes(text)
		for _, p := range prefixes {
			if err != nil || !p.IsValid() || p.Masked() != p || p.Addr().Is4In6() {
				t.Errorf("%q gave %v (%v)", text, p, err)
			}
		}
	})
}

func FuzzDuration(f *testing.F) {
	for _, seed := range []string{"", "1", "1s", "-1s", "1h0m", "9e9h", "1.5m", "999999999h", "30d", "1d12h", "106751d23h59m"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := parseDuration(text); err == nil && d < 0 {
			t.Errorf("%q is %v", text, d)
		}
	})
}

func TestSecretStringPrintsMasked(t *testing.T) {
	t.Parallel()
	secret := NewSecretString("hunter2")
	type config struct {
		Exported   SecretString
		unexported SecretString
	}
	c := config{secret, secret}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", slog.Any("secret", secret), slog.Any("config", c))
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		fmt.Sprint(secret), fmt.Sprintf("%s %v %+v %#v %q %x", secret, secret, secret, secret, secret, secret), fmt.Sprintf("%v %+v %#v", c, c, c),
		fmt.Sprintf("%v %+v %#v", &c, &c, &c), log.String(), string(encoded),
	} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "68756e74657232") {
			t.Errorf("the secret is in %q", text)
		}
	}
	if !strings.Contains(log.String(), "***") || fmt.Sprint(secret) != "***" || secret.Reveal() != "hunter2" {
		t.Errorf("got %s, %s, %q", log.String(), secret, secret.Reveal())
	}
	if empty := NewSecretString(""); empty.IsSet() || empty.String() != "" || empty.Reveal() != "" || empty != (SecretString{}) {
		t.Errorf("an empty secret is set: %v", empty)
	}
}

func TestCommon(t *testing.T) {
	t.Parallel()
	resolve := func(t *testing.T, pairs ...string) (*Common, error) {
		flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
		s := NewSettings(flags)
		var c Common
		c.Register(s)
		mustParse(t, flags)
		return &c, s.Resolve(env(pairs...))
	}

	t.Run("HasDefaultsThatPass", func(t *testing.T) {
		t.Parallel()
		c, err := resolve(t)
		if err != nil || c.LogLevel != "info" || c.LogFormat != "json" || c.DatabaseURL.IsSet() {
			t.Errorf("got %+v, %v", c, err)
		}
	})

	t.Run("AcceptsWhatPgxAccepts", func(t *testing.T) {
		t.Parallel()
		for _, url := range []string{
			"postgres://user:p%40ss@host:5432/db?sslmode=disable", "postgresql://a,b/db", "host=/tmp dbname=x",
			"postgres://user@host/db?pool_max_conns=5",
		} {
			if _, err := resolve(t, "FAIRHOOK_DATABASE_URL", url, "FAIRHOOK_LISTEN_DATABASE_URL", url); err != nil {
				t.Errorf("%s: %v", url, err)
			}
		}
	})

	t.Run("RefusesABadDatabaseURLWithoutShowingItsPassword", func(t *testing.T) {
		t.Parallel()
		for _, url := range []string{
			"postgres://user:sw0rdfish@host:port/db", "postgres://user:%zzsw0rdfish@host/db",
			"postgres://user:sw0rdfish@host/db?sslmode=perhaps", "sw0rdfish", "password=sw0rdfish port=none",
			"password='sw0rdfish port=1",
		} {
			_, err := resolve(t, "FAIRHOOK_DATABASE_URL", url)
			if err == nil {
				t.Errorf("%q was accepted", url)
			} else if strings.Contains(err.Error(), "sw0rd") {
				t.Errorf("the password is in %q", err)
			}
		}
	})

	t.Run("RefusesWordsItDoesNotKnow", func(t *testing.T) {
		t.Parallel()
		_, err := resolve(t, "FAIRHOOK_LOG_LEVEL", "loud", "FAIRHOOK_LOG_FORMAT", "xml")
		if got := problems(t, err); len(got) != 2 || got[0].Flag != "--log-level" || got[1].Flag != "--log-format" {
			t.Errorf("got %v", got)
		}
	})

	t.Run("ListensOnTheDatabaseURLUnlessTold", func(t *testing.T) {
		t.Parallel()
		c, _ := resolve(t, "FAIRHOOK_DATABASE_URL", "postgres://pooled/db")
		if got := c.DirectDatabaseURL().Reveal(); got != "postgres://pooled/db" {
			t.Errorf("got %q", got)
		}
		c, _ = resolve(t, "FAIRHOOK_DATABASE_URL", "postgres://pooled/db", "FAIRHOOK_LISTEN_DATABASE_URL", "postgres://direct/db")
		if got := c.DirectDatabaseURL().Reveal(); got != "postgres://direct/db" {
			t.Errorf("got %q", got)
		}
	})
}
