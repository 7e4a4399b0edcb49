package check

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
)

// documented are the scripts in docs/deploying.md that say that a test runs them.
func documented(t *testing.T) []string {
	t.Helper()
	var scripts []string
	for _, part := range strings.Split(read(t, "docs/deploying.md"), "<!-- a test runs this -->\n```sh\n")[1:] {
		script, _, ended := strings.Cut(part, "```\n")
		if !ended {
			t.Fatal("a script has no end")
		}
		scripts = append(scripts, script)
	}
	if len(scripts) != 3 {
		t.Fatalf("docs/deploying.md has %d scripts to run, and there are tests for 3", len(scripts))
	}
	return scripts
}

// do runs a script as a person would who has helm, in a copy of the tree or in dir.
func do(t *testing.T, script, dir string, env ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail")
	command.Dir, command.Stdin = dir, strings.NewReader(script)
	command.Env = append(os.Environ(), "PATH="+scratch+string(os.PathListSeparator)+os.Getenv("PATH"))
	command.Env = append(command.Env, env...)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return string(output)
}

func TestTheCommandsOfDeployingMd(t *testing.T) {
	t.Parallel()
	scripts := documented(t)

	t.Run("MakeTheSecretsThatComposeNeeds", func(t *testing.T) {
		t.Parallel()
		tool(t, "openssl")
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "deployments/compose"), 0o755); err != nil {
			t.Fatal(err)
		}
		do(t, scripts[0], dir)
		path := filepath.Join(dir, "deployments/compose/.env")
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the secrets are in %v: %v", info, err)
		}
		options, err := cli.NewProjectOptions([]string{absolute(t, composeFile)}, cli.WithEnvFiles(path), cli.WithDotEnv)
		if err != nil {
			t.Fatal(err)
		}
		project, err := options.LoadProject(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// The key as it was made, with the "=" at its end.
		key := environment(project.Services["ingest"])["FAIRHOOK_ENCRYPTION_KEY"]
		looksForItsDatabase(t, []string{program(t, "ingest")}, map[string]string{
			"FAIRHOOK_ENCRYPTION_KEY": key, "FAIRHOOK_DATABASE_URL": "postgres://nobody@127.0.0.1:1/nowhere", "FAIRHOOK_LISTEN": "127.0.0.1:0",
		}, nil)
		if options.Environment["POSTGRES_PASSWORD"] == "" || !strings.Contains(environment(project.Services["migrate"])["FAIRHOOK_DATABASE_URL"], options.Environment["POSTGRES_PASSWORD"]) {
			t.Error("migrate does not get the password")
		}
		for variable := range maps.Keys(composeEnv()) {
			if options.Environment[variable] == "" {
				t.Errorf("%s is not made", variable)
			}
		}
	})

	t.Run("RenderTheChart", func(t *testing.T) {
		t.Parallel()
		if err := buildHelm(); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.Symlink(absolute(t, "deployments"), filepath.Join(dir, "deployments")); err != nil {
			t.Fatal(err)
		}
		output := do(t, scripts[1], dir, "HOME="+t.TempDir())
		for _, want := range []string{"0 chart(s) failed", "image: registry.example.com/fairhook:v1.2.3", "FAIRHOOK_RETENTION", "FAIRHOOK_BOOTSTRAP_KEY", "name: hooks-fairhook-migrate"} {
			if !strings.Contains(output, want) {
				t.Errorf("there is no %q in\n%s", want, output)
			}
		}
	})

	t.Run("InstallTheUnits", func(t *testing.T) {
		t.Parallel()
		dir, to := t.TempDir(), t.TempDir()
		// "make build" has put them there.
		if err := os.Symlink(filepath.Dir(program(t, "ingest")), filepath.Join(dir, "bin")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(absolute(t, "deployments"), filepath.Join(dir, "deployments")); err != nil {
			t.Fatal(err)
		}
		do(t, scripts[2], dir, "DESTDIR="+to)
		for _, service := range services {
			exec := strings.Fields(parseUnit(t, unitName(service)).one(t, "[Service]ExecStart"))[0]
			if info, err := os.Stat(filepath.Join(to, exec)); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("%s is not installed: %v", exec, err)
			}
			if _, err := os.Stat(filepath.Join(to, "etc/systemd/system", unitName(service))); err != nil {
				t.Error(err)
			}
		}
		if info, err := os.Stat(filepath.Join(to, "etc/fairhook/fairhook.env")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the environment is in %v: %v", info, err)
		}
	})
}
