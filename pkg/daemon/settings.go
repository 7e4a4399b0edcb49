package daemon

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// EnvPrefix begins the environment name of every setting.
const EnvPrefix = "FAIRHOOK_"

// EnvName is the environment variable of a flag: --some-name is
// FAIRHOOK_SOME_NAME.
func EnvName(flag string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Settings are a command's settings: each is a flag and an environment variable,
// and the flag wins over the variable, which wins over the default.
//
// A command declares its settings when it is built, and calls Resolve once, before
// it does anything else:
//
//	settings := daemon.NewSettings(cmd.Flags())
//	cfg.Common.Register(settings)
//	settings.Int(&cfg.MaxConns, "max-conns", 10, "connections to the database")
//	settings.Check("max-conns", func() error { ... })
//	settings.Required("database-url")
//	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
//		if err := settings.Resolve(os.LookupEnv); err != nil {
//			return err // exit code 2
//		}
//		return run(cmd.Context(), cfg)
//	}
//
// Parsing the flags only records their text. Resolve reads it, so that an
// operator hears of everything that is wrong at once.
//
// An environment variable that is set to the empty text counts as not set, since
// that is how compose files and charts spell "the default". To override a
// default with nothing, give the flag: --name=
type Settings struct {
	flags    *pflag.FlagSet
	list     []*setting
	required map[string]bool
	checks   map[string][]func() error
}

// Setting describes one setting, for documentation.
type Setting struct {
	Flag     string `json:"flag"`    // the name without its dashes
	Env      string `json:"env"`     // the environment variable
	Type     string `json:"type"`    // "string", "int", "bool", "duration", "list", "cidrs" or "secret"
	Default  string `json:"default"` // as one would write it, empty for none
	Usage    string `json:"usage"`
	Required bool   `json:"required"`
	Secret   bool   `json:"secret"`
}

// setting is a pflag.Value that never refuses a text: it keeps it for Resolve.
type setting struct {
	Setting
	text   string // what the flag said
	given  bool   // the flag was on the command line
	repeat bool   // repeating the flag adds to it
	parse  func(text string) error
	reset  func()
	flag   *pflag.Flag
}

// Set implements pflag.Value.
func (s *setting) Set(text string) error {
	if s.repeat && s.given {
		text = s.text + "," + text
	}
	s.text, s.given = text, true
	return nil
}

// String implements pflag.Value: it is what --help shows as the default, and
// never the text of a secret.
func (s *setting) String() string { return s.Default }

// Type implements pflag.Value: it is the placeholder in --help.
func (s *setting) Type() string { return s.Setting.Type }

// NewSettings declares settings on flags, which is usually a cobra command's
// Flags().
func NewSettings(flags *pflag.FlagSet) *Settings {
	return &Settings{flags: flags, required: map[string]bool{}, checks: map[string][]func() error{}}
}

// String declares a text.
func (s *Settings) String(p *string, name, def, usage string) {
	add(s, p, &setting{Setting: Setting{Flag: name, Type: "string", Default: def, Usage: usage}}, def,
		func(text string) (string, error) { return text, nil })
}

// Int declares a whole number.
func (s *Settings) Int(p *int, name string, def int, usage string) {
	add(s, p, &setting{Setting: Setting{Flag: name, Type: "int", Default: strconv.Itoa(def), Usage: usage}}, def,
		func(text string) (int, error) {
			n, err := parseInt(text, strconv.IntSize)
			return int(n), err
		})
}

// Int64 declares a whole number of 64 bits.
func (s *Settings) Int64(p *int64, name string, def int64, usage string) {
	add(s, p, &setting{Setting: Setting{Flag: name, Type: "int", Default: strconv.FormatInt(def, 10), Usage: usage}}, def,
		func(text string) (int64, error) { return parseInt(text, 64) })
}

// Bool declares a switch: --name, --name=false, and in the environment any of
// true, false, 1, 0, on, off, yes and no.
func (s *Settings) Bool(p *bool, name string, def bool, usage string) {
	one := &setting{Setting: Setting{Flag: name, Type: "bool", Default: strconv.FormatBool(def), Usage: usage}}
	add(s, p, one, def, parseBool)
	one.flag.NoOptDefVal = "true"
}

// Duration declares a time span, written as Go does: 300ms, 30s, 5m, 1h30m. Days
// may come first, of 24 hours each: 30d, 1d12h. Negative ones are refused.
func (s *Settings) Duration(p *time.Duration, name string, def time.Duration, usage string) {
	add(s, p, &setting{Setting: Setting{Flag: name, Type: "duration", Default: formatDuration(def), Usage: usage}}, def, parseDuration)
}

// Strings declares a list: comma separated, and the flag may be repeated.
// Spaces around items and empty items are dropped.
func (s *Settings) Strings(p *[]string, name string, def []string, usage string) {
	one := &setting{Setting: Setting{Flag: name, Type: "list", Default: strings.Join(def, ","), Usage: usage}, repeat: true}
	add(s, p, one, def, func(text string) ([]string, error) { return splitList(text), nil })
}

// Prefixes declares a list of networks in CIDR form, like Strings. A single
// address stands for itself.
func (s *Settings) Prefixes(p *[]netip.Prefix, name string, def []netip.Prefix, usage string) {
	texts := make([]string, len(def))
	for i, prefix := range def {
		texts[i] = prefix.String()
	}
	one := &setting{Setting: Setting{Flag: name, Type: "cidrs", Default: strings.Join(texts, ","), Usage: usage}, repeat: true}
	add(s, p, one, def, parsePrefixes)
}

// Secret declares a text that is never shown. It has no default.
func (s *Settings) Secret(p *SecretString, name, usage string) {
	one := &setting{Setting: Setting{Flag: name, Type: "secret", Usage: usage, Secret: true}}
	add(s, p, one, SecretString{}, func(text string) (SecretString, error) { return NewSecretString(text), nil })
}

// Required says that the named settings must not be empty. They may be declared
// before or after.
func (s *Settings) Required(names ...string) {
	for _, name := range names {
		s.required[name] = true
	}
	for _, one := range s.list {
		s.require(one)
	}
}

func (s *Settings) require(one *setting) {
	if s.required[one.Flag] {
		one.Required = true
		one.flag.Usage = helpText(one)
	}
}

// Check adds a rule to a setting, which may be declared before or after. It runs
// in Resolve, after all settings have been read, unless the named one could not
// be: then its value is the default. Its error says what to do; it is shown after
// the names of the flag and the variable, and must not contain a secret.
func (s *Settings) Check(name string, check func() error) {
	s.checks[name] = append(s.checks[name], check)
}

// Describe lists the settings in the order in which they were declared.
func (s *Settings) Describe() []Setting {
	described := make([]Setting, len(s.list))
	for i, one := range s.list {
		described[i] = one.Setting
	}
	return described
}

// Resolve gives every setting its value, and returns a *ConfigError that lists
// everything that is wrong. lookupEnv is os.LookupEnv, or a test's own. It panics
// on a rule for a setting that was not declared, which is a mistake in the
// command.
func (s *Settings) Resolve(lookupEnv func(string) (string, bool)) error {
	s.mustKnowRules()
	var problems []Problem
	bad := map[*setting]bool{}
	report := func(one *setting, detail string) {
		bad[one] = true
		problems = append(problems, Problem{Flag: "--" + one.Flag, Env: one.Env, Detail: detail})
	}
	for _, one := range s.list {
		one.reset()
		text, source := one.text, "given as flag"
		if !one.given {
			env, set := lookupEnv(one.Env)
			if !set || env == "" {
				if one.Required && one.Default == "" {
					report(one, "is required: give the flag or set the environment variable")
				}
				continue
			}
			text, source = env, "set in the environment"
		}
		if one.Required && strings.TrimSpace(text) == "" {
			report(one, "must not be empty")
			continue
		}
		if err := one.parse(text); err != nil {
			if one.Secret {
				report(one, fmt.Sprintf("the value %s %v", source, err))
			} else {
				report(one, fmt.Sprintf("%q, %s, %v", text, source, err))
			}
		}
	}
	for _, one := range s.list {
		if bad[one] {
			continue
		}
		for _, check := range s.checks[one.Flag] {
			if err := check(); err != nil {
				report(one, err.Error())
			}
		}
	}
	if len(problems) > 0 {
		return &ConfigError{Problems: problems}
	}
	return nil
}

// ConfigError is everything that is wrong with a command's settings. Execute
// turns it into exit code 2.
type ConfigError struct {
	Problems []Problem // never empty
}

// Problem is what is wrong with one setting, and what to do about it.
type Problem struct {
	Flag   string // with its dashes
	Env    string
	Detail string
}

// Error lists the problems, one a line.
func (e *ConfigError) Error() string {
	var b strings.Builder
	if len(e.Problems) == 1 {
		b.WriteString("there is a problem with the configuration:")
	} else {
		fmt.Fprintf(&b, "there are %d problems with the configuration:", len(e.Problems))
	}
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "\n  %s (%s): %s", p.Flag, p.Env, p.Detail)
	}
	return b.String()
}

// add is a function because methods cannot have type parameters of their own.
func add[T any](s *Settings, p *T, one *setting, def T, parse func(string) (T, error)) {
	one.Env = EnvName(one.Flag)
	one.reset = func() { *p = def }
	one.parse = func(text string) error {
		value, err := parse(text)
		if err != nil {
			return err
		}
		*p = value
		return nil
	}
	one.reset()
	one.flag = s.flags.VarPF(one, one.Flag, "", helpText(one))
	s.list = append(s.list, one)
	s.require(one)
}

func (s *Settings) mustKnowRules() {
	known := map[string]bool{}
	for _, one := range s.list {
		known[one.Flag] = true
	}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(s.required)), slices.Collect(maps.Keys(s.checks))) {
		if !known[name] {
			panic(fmt.Sprintf("daemon: no setting is named %q", name))
		}
	}
}

// helpText is what --help says about a setting. pflag adds the default by
// itself, except where it looks like a zero value.
func helpText(one *setting) string {
	text := one.Usage + " [" + one.Env + "]"
	switch {
	case one.Required:
		text += " (required)"
	case one.Default == "":
		text += " (default none)"
	case one.Default == "0" || one.Default == "false":
		text += " (default " + one.Default + ")"
	}
	return text
}

func parseInt(text string, bits int) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, bits)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, errors.New("is too large a number")
	case err != nil:
		return 0, errors.New("is not a whole number: write it like 250, without separators or units")
	}
	return n, nil
}

func parseBool(text string) (bool, error) {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "true", "t", "1", "on", "yes", "y":
		return true, nil
	case "false", "f", "0", "off", "no", "n":
		return false, nil
	}
	return false, errors.New("is neither true nor false")
}

const day = 24 * time.Hour

func parseDuration(text string) (time.Duration, error) {
	rest := strings.TrimSpace(text)
	var days uint64
	if before, after, found := strings.Cut(rest, "d"); found {
		var err error
		if days, err = strconv.ParseUint(before, 10, 64); err != nil || days > uint64(math.MaxInt64/day) {
			return 0, errBadDuration
		}
		if rest = after; rest == "" {
			rest = "0s"
		}
	}
	d, err := time.ParseDuration(rest)
	switch {
	case err != nil || days > 0 && !isDigit(rest[0]):
		return 0, errBadDuration
	case d < 0:
		return 0, errors.New("is negative: a duration must be 0s or more")
	case d > math.MaxInt64-time.Duration(days)*day:
		return 0, errBadDuration
	}
	return time.Duration(days)*day + d, nil
}

var errBadDuration = errors.New("is not a duration: write it with a unit, like 500ms, 30s, 5m, 2h or 30d")

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// formatDuration drops the zero units that time.Duration's String ends with:
// 1h0m0s is 1h. Whole days are days.
func formatDuration(d time.Duration) string {
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func splitList(text string) []string {
	var items []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func parsePrefixes(text string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, item := range splitList(text) {
		prefix, err := parsePrefix(item)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(prefixes, prefix) {
			prefixes = append(prefixes, prefix)
		}
	}
	return prefixes, nil
}

func parsePrefix(item string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(item); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(item)
	if err != nil || prefix.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("contains %q, which is not a network: write it like 10.0.0.0/8, 127.0.0.1 or fd00::/8, comma separated", item)
	}
	// A list that opens the network to webhooks is not the place to guess.
	if network := prefix.Masked(); network != prefix {
		return netip.Prefix{}, fmt.Errorf("contains %q, an address inside a network: write %s for the network or %s for the address", item, network, prefix.Addr())
	}
	return prefix, nil
}
