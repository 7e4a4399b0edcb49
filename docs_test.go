package fairhook_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"

	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/webhook"
)

var update = flag.Bool("update", false, "write the generated parts of the documentation anew")

// commands are the programs, in the order in which the reference names them.
var commands = []string{"ingest", "dispatcher", "migrate", "fairhook"}

// contract are the variables that README.md shows: the ones that other programs
// and people's deployments rely on most.
var contract = []string{
	"FAIRHOOK_DATABASE_URL", "FAIRHOOK_LISTEN_DATABASE_URL", "FAIRHOOK_LISTEN", "FAIRHOOK_ENCRYPTION_KEY",
	"FAIRHOOK_BOOTSTRAP_KEY", "FAIRHOOK_ALLOW_PRIVATE_TARGETS", "FAIRHOOK_REQUIRE_HTTPS",
	"FAIRHOOK_SHUTDOWN_TIMEOUT", "FAIRHOOK_LOG_LEVEL", "FAIRHOOK_LOG_FORMAT",
}

// programsDir is where the programs are built, once for all tests of this package
// that need them. TestMain makes and removes it.
var programsDir string

var build = sync.OnceValue(func() error {
	output, err := exec.Command("go", "build", "-o", programsDir, "./cmd/...").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, output)
	}
	return nil
})

// programs is the directory of the programs.
func programs(t *testing.T) string {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	return programsDir
}

// commandSettings asks the programs for their settings.
func commandSettings(t *testing.T) []daemon.CommandSettings {
	t.Helper()
	bin := programs(t)
	var all []daemon.CommandSettings
	for _, name := range commands {
		command := exec.CommandContext(t.Context(), filepath.Join(bin, name), "__settings")
		var stderr strings.Builder
		command.Stderr = &stderr
		output, err := command.Output()
		if err != nil {
			t.Fatalf("ask %s for its settings: %v\n%s", name, err, stderr.String())
		}
		var settings []daemon.CommandSettings
		if err := json.Unmarshal(output, &settings); err != nil {
			t.Fatalf("read settings of %s: %v", name, err)
		}
		all = append(all, settings...)
	}
	return all
}

// settingsTable is a row for each setting, sorted by variable. Commands share a
// row where they agree on everything. keep chooses what is in it.
func settingsTable(all []daemon.CommandSettings, keep func(command, env string) bool) string {
	usedBy := map[daemon.Setting][]string{}
	for _, command := range all {
		for _, s := range command.Settings {
			if keep(command.Command, s.Env) {
				usedBy[s] = append(usedBy[s], command.Command)
			}
		}
	}
	settings := slices.SortedFunc(maps.Keys(usedBy), func(a, b daemon.Setting) int {
		if c := strings.Compare(a.Env, b.Env); c != 0 {
			return c
		}
		return strings.Compare(strings.Join(usedBy[a], ","), strings.Join(usedBy[b], ","))
	})
	var table strings.Builder
	table.WriteString("| variable | flag | used by | default | meaning |\n|---|---|---|---|---|\n")
	for _, s := range settings {
		def := "none"
		switch {
		case s.Required:
			def = "required"
		case s.Default != "":
			def = "`" + s.Default + "`"
		}
		fmt.Fprintf(&table, "| `%s` | `--%s` | %s | %s | %s |\n", s.Env, s.Flag,
			strings.Join(usedBy[s], ", "), def, strings.ReplaceAll(s.Usage, "|", `\|`))
	}
	return table.String()
}

// generated finds what is between a file's markers for name.
func generated(t *testing.T, text, name string) (before, between, after string) {
	t.Helper()
	opening, closing := "<!-- generated: "+name+" -->\n", "<!-- end of generated -->"
	before, rest, found := strings.Cut(text, opening)
	between, after, ended := strings.Cut(rest, closing)
	if !found || !ended {
		t.Fatalf("there are no markers for %q", name)
	}
	return before + opening, between, closing + after
}

func TestConfigurationReference(t *testing.T) {
	t.Parallel()
	all := commandSettings(t)
	service := func(command string) bool { return !strings.HasPrefix(command, "fairhook") }
	for _, tc := range []struct {
		file, name string
		keep       func(command, env string) bool
	}{
		{"README.md", "contract", func(command, env string) bool { return service(command) && slices.Contains(contract, env) }},
		{"docs/configuration.md", "services", func(command, _ string) bool { return service(command) }},
		{"docs/configuration.md", "fairhook", func(command, _ string) bool { return !service(command) }},
	} {
		text, err := os.ReadFile(tc.file)
		if err != nil {
			t.Fatal(err)
		}
		want := settingsTable(all, tc.keep)
		before, got, after := generated(t, string(text), tc.name)
		switch {
		case got == want:
		case *update:
			if err := os.WriteFile(tc.file, []byte(before+want+after), 0o644); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("%s does not say what the programs do; \"make docs\" makes it:\n%s", tc.file, want)
		}
	}
	table := settingsTable(all, func(command, _ string) bool { return service(command) })
	for _, env := range contract {
		if !strings.Contains(table, "`"+env+"`") {
			t.Errorf("no service has %s", env)
		}
	}
}

// Commands that share a variable must mean the same by it, since one environment
// serves them all; only their defaults, and whether they insist, may differ.
func TestCommandsAgreeOnTheirSettings(t *testing.T) {
	t.Parallel()
	types := map[string]daemon.Setting{}
	for _, command := range commandSettings(t) {
		for _, s := range command.Settings {
			first, seen := types[s.Env]
			if !seen {
				types[s.Env] = s
			} else if first.Type != s.Type || first.Secret != s.Secret {
				t.Errorf("%s is a %s for %s, and a %s elsewhere", s.Env, s.Type, command.Command, first.Type)
			}
			if strings.HasSuffix(s.Usage, ".") || s.Usage == "" || strings.Contains(s.Usage, "\n") {
				t.Errorf("the usage of %s of %s is not one phrase: %q", s.Flag, command.Command, s.Usage)
			}
		}
	}
	if len(types) == 0 {
		t.Error("no settings")
	}
}

// docs/states.md has a row for each status and each reason, and no others.
func TestStatesAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/states.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, "| `"); found {
			word, _, _ := strings.Cut(rest, "`")
			got = append(got, word)
		}
	}
	want := []string{
		string(webhook.StatusPending), string(webhook.StatusDelivering), string(webhook.StatusRetrying), string(webhook.StatusParked),
		string(webhook.StatusDelivered), string(webhook.StatusExhausted), string(webhook.StatusCancelled), string(webhook.StatusDropped),
	}
	for _, reason := range webhook.Reasons() {
		want = append(want, string(reason))
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/states.md has rows for\n%v, want\n%v", got, want)
	}
}

// docs/signatures.md has a row for each scheme, each kind of secret and each field
// of a template, and names every word that a template may have.
func TestSignaturesAreDocumented(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("docs/signatures.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, scheme := range webhook.Schemes() {
		if !strings.Contains(text, fmt.Sprintf("\n| `%s` |", scheme)) {
			t.Errorf("the scheme %s has no row", scheme)
		}
	}
	fields := reflect.TypeFor[webhook.SignatureTemplate]()
	for i := range fields.NumField() {
		if name := fields.Field(i).Tag.Get("json"); !strings.Contains(text, fmt.Sprintf("\n| `%s` |", name)) {
			t.Errorf("the field %s of a template has no row", name)
		}
	}
	for _, kind := range []webhook.SecretKind{webhook.SecretSymmetric, webhook.SecretText} {
		if !strings.Contains(text, fmt.Sprintf(" | `%s` | ", kind)) {
			t.Errorf("the kind of secrets %s has no row", kind)
		}
	}
	var words []string
	for _, algorithm := range webhook.Algorithms() {
		words = append(words, string(algorithm))
	}
	for _, encoding := range webhook.Encodings() {
		words = append(words, string(encoding))
	}
	for _, word := range words {
		if !strings.Contains(text, "`"+word+"`") {
			t.Errorf("the word %s is not explained", word)
		}
	}
}

// Relative links in the documentation lead somewhere.
func TestDocumentationLinks(t *testing.T) {
	t.Parallel()
	var files []string
	for _, pattern := range []string{"docs/*.md", "docs/runbooks/*.md"} {
		pages, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, pages...)
	}
	links := 0
	for _, file := range append(files, "docs/examples/README.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, rest := range strings.Split(string(text), "](")[1:] {
			target, _, _ := strings.Cut(rest, ")")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			path, anchor, _ := strings.Cut(target, "#")
			if path = filepath.Join(filepath.Dir(file), path); strings.HasPrefix(target, "#") {
				path = file
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s, which is not there", file, target)
			} else if anchor != "" && !slices.Contains(anchors(t, path), anchor) {
				t.Errorf("%s links to %s, which has no such heading", file, target)
			}
		}
	}
	if links < 5 {
		t.Errorf("found only %d links", links)
	}
}

// anchors are the names by which GitHub links to the headings of a page.
func anchors(t *testing.T, page string) []string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		heading := strings.TrimLeft(line, "#")
		if heading == line || !strings.HasPrefix(heading, " ") {
			continue
		}
		names = append(names, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(heading)))
	}
	return names
}

// Every "make target" in the documentation exists.
func TestDocumentedMakeTargetsExist(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range []string{"README.md", "CONTRIBUTING.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(strings.ReplaceAll(line, "`", " "))
			for i, word := range fields[:max(0, len(fields)-1)] {
				if word != "make" || i > 0 && !strings.Contains(line, "`make "+fields[i+1]) {
					continue
				}
				seen++
				if !strings.Contains(string(makefile), "\n"+fields[i+1]+":") {
					t.Errorf("%s names make %s, which is not in the Makefile", file, fields[i+1])
				}
			}
		}
	}
	if seen < 5 {
		t.Errorf("found only %d targets", seen)
	}
}
