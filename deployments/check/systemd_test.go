package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const unitsDir = "deployments/systemd"

// unit is what a unit file says, by directive; a repeated one has several values.
type unit map[string][]string

// parseUnit reads a unit file of the plain form that ours have.
func parseUnit(t *testing.T, name string) unit {
	t.Helper()
	parsed, section := unit{}, ""
	for line := range strings.Lines(read(t, filepath.Join(unitsDir, name))) {
		line = strings.TrimSpace(line)
		key, value, assigns := strings.Cut(line, "=")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
			section = line
		case !assigns || section == "" || strings.HasSuffix(line, `\`):
			t.Fatalf("%s: cannot read %q", name, line)
		default:
			parsed[section+key] = append(parsed[section+key], value)
		}
	}
	return parsed
}

func (u unit) one(t *testing.T, directive string) string {
	t.Helper()
	if len(u[directive]) != 1 {
		t.Errorf("%s is %q", directive, u[directive])
		return ""
	}
	return u[directive][0]
}

func unitName(service string) string { return "fairhook-" + service + ".service" }

func TestUnits(t *testing.T) {
	t.Parallel()

	t.Run("RunTheProgramsWithSettingsThatTheyAccept", func(t *testing.T) {
		t.Parallel()
		env := map[string]string{}
		for line := range strings.Lines(read(t, unitsDir+"/fairhook.env")) {
			if variable, value, assigns := strings.Cut(strings.TrimSpace(line), "="); assigns && !strings.HasPrefix(line, "#") {
				env[variable] = value
			}
		}
		env["FAIRHOOK_ENCRYPTION_KEY"] = encryptionKey
		for _, service := range services {
			parsed := parseUnit(t, unitName(service))
			if got := parsed["[Service]EnvironmentFile"]; len(got) == 0 || got[0] != "/etc/fairhook/fairhook.env" {
				t.Errorf("%s reads %q", service, got)
			}
			// One environment serves all: each takes what it knows.
			settings, given := settingsOf(t, service), map[string]string{}
			for variable, value := range env {
				if _, known := settings[variable]; known {
					given[variable] = value
				}
			}
			accepts(t, strings.Fields(parsed.one(t, "[Service]ExecStart")), given)
		}
		for variable := range env {
			if !slices.ContainsFunc(services, func(s string) bool { return settingsOf(t, s)[variable].Env != "" }) {
				t.Errorf("no program has %s", variable)
			}
		}
	})

	t.Run("KillNothingThatIsStillStopping", func(t *testing.T) {
		t.Parallel()
		seconds := func(text string) time.Duration {
			n, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			return time.Duration(n) * time.Second
		}
		for _, service := range []string{"ingest", "dispatcher"} {
			stopping := duration(t, settingsOf(t, service)["FAIRHOOK_SHUTDOWN_TIMEOUT"], "")
			if got := seconds(parseUnit(t, unitName(service)).one(t, "[Service]TimeoutStopSec")); got < stopping+5*time.Second {
				t.Errorf("%s stops within %v and is killed after %v", service, stopping, got)
			}
		}
		migrating := duration(t, settingsOf(t, "migrate")["FAIRHOOK_TIMEOUT"], "")
		if got := seconds(parseUnit(t, unitName("migrate")).one(t, "[Service]TimeoutStartSec")); got < migrating+5*time.Second {
			t.Errorf("migrate takes up to %v and is killed after %v", migrating, got)
		}
	})

	t.Run("AreHardened", func(t *testing.T) {
		t.Parallel()
		for _, service := range services {
			parsed := parseUnit(t, unitName(service))
			for directive, want := range map[string]string{
				"DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
				"PrivateDevices": "yes", "CapabilityBoundingSet": "", "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
				"MemoryDenyWriteExecute": "yes", "SystemCallArchitectures": "native", "UMask": "0077",
			} {
				if got := parsed.one(t, "[Service]"+directive); got != want {
					t.Errorf("%s: %s=%s, want %s", service, directive, got, want)
				}
			}
			if service == "migrate" {
				continue
			}
			if parsed.one(t, "[Service]Type") != "exec" || parsed.one(t, "[Service]Restart") != "always" || parsed.one(t, "[Service]RestartPreventExitStatus") != "2" {
				t.Errorf("%s is started and restarted otherwise", service)
			}
		}
	})

	// systemd's own opinion, where it is, since it needs all of systemd's own units:
	// of copies that start what is built here.
	t.Run("PassSystemdsOwnCheck", func(t *testing.T) {
		t.Parallel()
		analyze, err := exec.LookPath("systemd-analyze")
		if err != nil {
			t.Skip("there is no systemd on this machine; the tests beside this one read the units themselves")
		}
		dir := t.TempDir()
		var paths []string
		for _, service := range services {
			text := strings.ReplaceAll(read(t, filepath.Join(unitsDir, unitName(service))), "/opt/fairhook/bin/"+service, program(t, service))
			path := filepath.Join(dir, unitName(service))
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			paths = append(paths, path)
		}
		output := succeeds(t, dir, append([]string{analyze, "verify", "--man=no"}, paths...)...)
		// It only warns of what it does not know.
		if regexp.MustCompile(`fairhook-\w+\.service`).MatchString(output) {
			t.Error(output)
		}
		// From 0, nothing is open, to 100.
		succeeds(t, dir, append([]string{analyze, "security", "--no-pager", "--offline=true", "--threshold=15"}, paths...)...)
	})
}
