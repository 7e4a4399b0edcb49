package check

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// root is the tree's, seen from here.
const root = "../.."

// services are the programs that a deployment runs.
var services = []string{"ingest", "dispatcher", "migrate"}

// scratch is for what is built once for all tests. TestMain makes and removes it.
var scratch string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "fairhook-check-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	return m.Run()
}

// builder builds packages into scratch, once.
func builder(dir string, packages ...string) func() error {
	return sync.OnceValue(func() error {
		arguments := append([]string{"build", "-o", scratch + string(filepath.Separator)}, packages...)
		command := exec.Command("go", arguments...)
		command.Dir = dir
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", strings.Join(packages, " "), err, output)
		}
		return nil
	})
}

var buildPrograms = builder(root, "./cmd/...")

// program is the path of one of Fairhook's programs.
func program(t *testing.T, name string) string {
	t.Helper()
	if err := buildPrograms(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(scratch, name)
}

// setting is what a program says of one of its settings.
type setting struct {
	Flag     string `json:"flag"`
	Env      string `json:"env"`
	Type     string `json:"type"`
	Default  string `json:"default"`
	Usage    string `json:"usage"`
	Required bool   `json:"required"`
	Secret   bool   `json:"secret"`
}

// settingsOf asks a program for its settings, by variable, but for those of subcommands
// that nothing here runs.
func settingsOf(t *testing.T, name string) map[string]setting {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), program(t, name), "__settings").Output()
	if err != nil {
		t.Fatalf("ask %s for its settings: %v", name, err)
	}
	var commands []struct {
		Command  string
		Settings []setting
	}
	if err := json.Unmarshal(output, &commands); err != nil {
		t.Fatal(err)
	}
	settings := map[string]setting{}
	for _, command := range commands {
		if command.Command != name {
			continue
		}
		for _, s := range command.Settings {
			settings[s.Env] = s
		}
	}
	if len(settings) == 0 {
		t.Fatalf("%s has no settings", name)
	}
	return settings
}

// encryptionKey is a key of the form that the programs want.
const encryptionKey = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// accepts checks that a program knows every FAIRHOOK variable it is given, has
// all that it must have, and takes their values: it gets as far as to look for its
// database, which is not there. command is as in a container, or a unit.
func accepts(t *testing.T, command []string, env map[string]string) {
	t.Helper()
	name := filepath.Base(command[0])
	if !slices.Contains(services, name) {
		t.Fatalf("%v runs none of %v", command, services)
	}
	settings := settingsOf(t, name)
	given := map[string]string{}
	for variable, value := range env {
		if !strings.HasPrefix(variable, "FAIRHOOK_") {
			continue
		}
		if _, known := settings[variable]; !known {
			t.Errorf("%s has no setting %s", name, variable)
		}
		given[variable] = value
	}
	for _, s := range settings {
		if s.Required && given[s.Env] == "" {
			t.Errorf("%s is not given %s", name, s.Env)
		}
	}
	for variable := range given {
		switch variable {
		case "FAIRHOOK_DATABASE_URL", "FAIRHOOK_LISTEN_DATABASE_URL":
			given[variable] = "postgres://nobody@127.0.0.1:1/nowhere"
		case "FAIRHOOK_ENCRYPTION_KEY", "FAIRHOOK_OLD_ENCRYPTION_KEYS":
			given[variable] = encryptionKey
		}
	}
	if name != "migrate" {
		given["FAIRHOOK_LISTEN"] = "127.0.0.1:0"
	}
	looksForItsDatabase(t, append([]string{program(t, name)}, command[1:]...), given, nil)
}

// looksForItsDatabase runs a command until it has got beyond its settings, with
// these attributes if there are any.
func looksForItsDatabase(t *testing.T, command []string, env map[string]string, attributes *syscall.SysProcAttr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, command[0], command[1:]...)
	child.WaitDelay, child.SysProcAttr = 10*time.Second, attributes
	child.Env = []string{} // not nil, which would be ours
	for variable, value := range env {
		child.Env = append(child.Env, variable+"="+value)
	}
	var stderr strings.Builder
	child.Stderr = &stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	looked := false
	for lines := bufio.NewScanner(stdout); !looked && lines.Scan(); {
		looked = strings.Contains(lines.Text(), "waiting for the database")
	}
	cancel()
	err = child.Wait()
	var exit *exec.ExitError
	if !looked && !(errors.As(err, &exit) && exit.ExitCode() == 1 && strings.Contains(stderr.String(), "127.0.0.1:1")) {
		t.Errorf("%v refuses its settings: %v\n%s", command, err, stderr.String())
	}
}

// duration is what a setting of that type comes to where a deployment leaves it
// alone or sets it to value.
func duration(t *testing.T, s setting, value string) time.Duration {
	t.Helper()
	if value == "" {
		value = s.Default
	}
	d, err := time.ParseDuration(value)
	if err != nil {
		t.Fatalf("%s: %v", s.Env, err)
	}
	return d
}

// read is the text of a file of the tree.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// absolute is the path of a file of the tree for those who are elsewhere.
func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// tool is a checker that is not written in Go: where it is on this machine, or
// where .ci/tools has put it. A test that lacks one is skipped, and fails in CI.
func tool(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	path := absolute(t, filepath.Join(".cache", "tools", "bin", name))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("there is no %s, which CI must have: .ci/tools should have got it", name)
	}
	t.Skipf("there is no %s on this machine", name)
	return ""
}

// succeeds runs a command and returns what it prints.
func succeeds(t *testing.T, dir string, command ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, command[0], command[1:]...)
	child.Dir = dir
	output, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, output)
	}
	return string(output)
}
