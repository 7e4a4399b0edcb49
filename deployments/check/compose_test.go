package check

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"sigs.k8s.io/yaml"
)

const composeFile = "deployments/compose/compose.yaml"

// composeEnv is what the compose file cannot do without.
func composeEnv() map[string]string {
	return map[string]string{
		"POSTGRES_PASSWORD": "secret", "GRAFANA_PASSWORD": "secret",
		"FAIRHOOK_ENCRYPTION_KEY": encryptionKey, "FAIRHOOK_BOOTSTRAP_KEY": "first",
	}
}

func loadCompose(t *testing.T, env map[string]string) (*types.Project, error) {
	t.Helper()
	var pairs []string
	for variable, value := range env {
		pairs = append(pairs, variable+"="+value)
	}
	options, err := cli.NewProjectOptions([]string{absolute(t, composeFile)}, cli.WithEnv(pairs), cli.WithDefaultProfiles())
	if err != nil {
		t.Fatal(err)
	}
	return options.LoadProject(t.Context())
}

func compose(t *testing.T) *types.Project {
	t.Helper()
	project, err := loadCompose(t, composeEnv())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// ours are the services that run Fairhook's own image.
func ours(t *testing.T, project *types.Project) types.Services {
	t.Helper()
	found := types.Services{}
	for name, service := range project.Services {
		if service.Build != nil {
			found[name] = service
		}
	}
	if len(found) != len(services) {
		t.Fatalf("compose builds %v, want %v", slices.Collect(maps.Keys(found)), services)
	}
	return found
}

func environment(service types.ServiceConfig) map[string]string {
	env := map[string]string{}
	for variable, value := range service.Environment {
		if value != nil {
			env[variable] = *value
		}
	}
	return env
}

func TestCompose(t *testing.T) {
	t.Parallel()

	t.Run("RefusesToStartWithoutItsSecrets", func(t *testing.T) {
		t.Parallel()
		for variable := range composeEnv() {
			env := composeEnv()
			delete(env, variable)
			if _, err := loadCompose(t, env); err == nil || !strings.Contains(err.Error(), variable) {
				t.Errorf("without %s: %v", variable, err)
			}
		}
	})

	t.Run("RunsTheProgramsWithSettingsThatTheyAccept", func(t *testing.T) {
		t.Parallel()
		for name, service := range ours(t, compose(t)) {
			accepts(t, service.Command, environment(service))
			if name != filepath.Base(service.Command[0]) {
				t.Errorf("%s runs %v", name, service.Command)
			}
		}
		// And with everything that it passes on.
		env := composeEnv()
		maps.Copy(env, map[string]string{
			"FAIRHOOK_ALLOW_PRIVATE_TARGETS": "10.1.0.0/16", "FAIRHOOK_REQUIRE_HTTPS": "true", "FAIRHOOK_RETENTION": "7d", "SUBNET": "10.9.0.0/24",
		})
		project, err := loadCompose(t, env)
		if err != nil {
			t.Fatal(err)
		}
		for _, service := range ours(t, project) {
			accepts(t, service.Command, environment(service))
		}
	})

	t.Run("HasTwoOfEachServiceAfterMigrate", func(t *testing.T) {
		t.Parallel()
		project := compose(t)
		for _, name := range []string{"ingest", "dispatcher"} {
			service := project.Services[name]
			if service.GetScale() != 2 {
				t.Errorf("there are %d of %s", service.GetScale(), name)
			}
			if got := service.DependsOn["migrate"].Condition; got != types.ServiceConditionCompletedSuccessfully {
				t.Errorf("%s waits for migrate: %q", name, got)
			}
		}
		if got := project.Services["migrate"].DependsOn["postgres"].Condition; got != types.ServiceConditionHealthy {
			t.Errorf("migrate waits for postgres: %q", got)
		}
		if project.Services["postgres"].HealthCheck == nil {
			t.Error("postgres has no health check")
		}
	})

	t.Run("KillsNothingThatIsStillStopping", func(t *testing.T) {
		t.Parallel()
		for _, name := range []string{"ingest", "dispatcher"} {
			service := compose(t).Services[name]
			stopping := duration(t, settingsOf(t, name)["FAIRHOOK_SHUTDOWN_TIMEOUT"], environment(service)["FAIRHOOK_SHUTDOWN_TIMEOUT"])
			if service.StopGracePeriod == nil || time.Duration(*service.StopGracePeriod) < stopping+5*time.Second {
				t.Errorf("%s stops within %v and is killed after %v", name, stopping, service.StopGracePeriod)
			}
		}
	})

	t.Run("GivesItsContainersNoMoreRightsThanTheyNeed", func(t *testing.T) {
		t.Parallel()
		for name, service := range compose(t).Services {
			if name == "postgres" {
				continue // its image begins as root, for its volume
			}
			if !service.ReadOnly || !slices.Equal(service.CapDrop, []string{"ALL"}) || !slices.Equal(service.SecurityOpt, []string{"no-new-privileges:true"}) || service.Privileged {
				t.Errorf("%s is not hardened", name)
			}
		}
	})

	t.Run("PublishesPortsOnThisMachineOnly", func(t *testing.T) {
		t.Parallel()
		published := 0
		for name, service := range compose(t).Services {
			for _, port := range service.Ports {
				published++
				if port.HostIP != "127.0.0.1" {
					t.Errorf("%s publishes port %s on %q", name, port.Published, port.HostIP)
				}
			}
		}
		if published != 3 {
			t.Errorf("%d ports are published", published)
		}
	})

	t.Run("NamesVersionsAndFilesThatAreThere", func(t *testing.T) {
		t.Parallel()
		project := compose(t)
		for name, service := range project.Services {
			if service.Build != nil {
				for _, path := range []string{service.Build.Context, filepath.Join(service.Build.Context, service.Build.Dockerfile)} {
					if _, err := os.Stat(path); err != nil {
						t.Errorf("%s is built from %v", name, err)
					}
				}
			} else if !regexp.MustCompile(`:v?[0-9][a-z0-9.-]*$`).MatchString(service.Image) {
				t.Errorf("%s has the image %s, without a version", name, service.Image)
			}
			for _, volume := range service.Volumes {
				if volume.Type != types.VolumeTypeBind {
					continue
				}
				if _, err := os.Stat(volume.Source); err != nil || !volume.ReadOnly {
					t.Errorf("%s mounts %s (%v), read only: %v", name, volume.Source, err, volume.ReadOnly)
				}
			}
		}
	})
}

// listenPort is where a program listens if nobody says otherwise.
func listenPort(t *testing.T, name string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(settingsOf(t, name)["FAIRHOOK_LISTEN"].Default)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestTheBalancer(t *testing.T) {
	t.Parallel()
	text := read(t, "deployments/compose/haproxy.cfg")

	t.Run("AsksTheCopiesOfIngestForTheirReadiness", func(t *testing.T) {
		t.Parallel()
		server := regexp.MustCompile(`(?m)^    server-template ingest \d+ (\w+):(\d+) check inter 1s fall 2 `).FindStringSubmatch(text)
		if server == nil || server[1] != "ingest" || server[2] != listenPort(t, "ingest") {
			t.Errorf("it balances over %q", server)
		}
		if !strings.Contains(text, "uri /readyz ") {
			t.Error("it does not ask for /readyz")
		}
		service := compose(t).Services["ingest"]
		// It notices after two checks.
		if delay := duration(t, setting{}, environment(service)["FAIRHOOK_SHUTDOWN_DELAY"]); delay < 3*time.Second {
			t.Errorf("ingest waits only %v for it to notice that it stops", delay)
		}
	})

	t.Run("IsTheProxyWhoseHeaderIngestBelieves", func(t *testing.T) {
		t.Parallel()
		project := compose(t)
		networks := slices.Collect(maps.Keys(project.Services["balancer"].Networks))
		if len(networks) != 1 {
			t.Fatalf("the balancer is in %v", networks)
		}
		subnet := project.Networks[networks[0]].Ipam.Config[0].Subnet
		if trusted := environment(project.Services["ingest"])["FAIRHOOK_TRUSTED_PROXIES"]; trusted != subnet {
			t.Errorf("ingest trusts %q, and the balancer is in %q", trusted, subnet)
		}
	})

	t.Run("PassesHaproxysOwnCheck", func(t *testing.T) {
		t.Parallel()
		succeeds(t, ".", tool(t, "haproxy"), "-c", "-f", absolute(t, "deployments/compose/haproxy.cfg"))
	})
}

func TestPrometheusScrapesWhatComposeRuns(t *testing.T) {
	t.Parallel()
	var config struct {
		ScrapeConfigs []struct {
			JobName string `json:"job_name"`
			DNS     []struct {
				Names []string `json:"names"`
				Port  int      `json:"port"`
			} `json:"dns_sd_configs"`
		} `json:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "deployments/prometheus/prometheus.yml")), &config); err != nil {
		t.Fatal(err)
	}
	project := compose(t)
	for _, scrape := range config.ScrapeConfigs {
		for _, dns := range scrape.DNS {
			for _, name := range dns.Names {
				if _, found := project.Services[name]; !found || scrape.JobName != "fairhook-"+name {
					t.Errorf("the job %s scrapes %s", scrape.JobName, name)
				}
				if want := listenPort(t, name); want != strconv.Itoa(dns.Port) {
					t.Errorf("%s is scraped at port %d, and listens on %s", name, dns.Port, want)
				}
			}
		}
	}
	if len(config.ScrapeConfigs) != 2 {
		t.Errorf("there are %d jobs", len(config.ScrapeConfigs))
	}
}
