package check

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const (
	rulesFile     = "deployments/prometheus/rules/fairhook.yml"
	ruleTestsFile = "deployments/prometheus/tests/fairhook.yml"
	runbooks      = "docs/runbooks"
)

type alert struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string  `json:"name"`
			Rules []alert `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, rulesFile)), &file); err != nil {
		t.Fatal(err)
	}
	var all []alert
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("there are no alerts")
	}
	return all
}

func TestPrometheusTakesItsConfigurationAndRules(t *testing.T) {
	t.Parallel()
	promtool := tool(t, "promtool")
	succeeds(t, ".", promtool, "check", "config", absolute(t, "deployments/prometheus/prometheus.yml"))
	succeeds(t, ".", promtool, "check", "rules", "--lint=all", "--lint-fatal", absolute(t, rulesFile))
}

func TestAlerts(t *testing.T) {
	t.Parallel()

	t.Run("FireWhenTheyShouldAndNotWhenAllIsWell", func(t *testing.T) {
		t.Parallel()
		succeeds(t, ".", tool(t, "promtool"), "test", "rules", absolute(t, ruleTestsFile))
	})

	t.Run("AreAllTriedOut", func(t *testing.T) {
		t.Parallel()
		tests := read(t, ruleTestsFile)
		for _, a := range alerts(t) {
			if !strings.Contains(tests, `alertname="`+a.Alert+`", alertstate="firing"`) {
				t.Errorf("no test has %s fire", a.Alert)
			}
		}
	})

	t.Run("SayWhatHappensAndWhatToDo", func(t *testing.T) {
		t.Parallel()
		want := map[string]bool{}
		for _, a := range alerts(t) {
			page := a.Alert + ".md"
			want[page] = true
			if !slices.Contains([]string{"critical", "warning"}, a.Labels["severity"]) || a.For == "" {
				t.Errorf("%s has the severity %q, for %q", a.Alert, a.Labels["severity"], a.For)
			}
			if a.Annotations["summary"] == "" || a.Annotations["description"] == "" {
				t.Errorf("%s says nothing", a.Alert)
			}
			if !strings.HasSuffix(a.Annotations["runbook_url"], "/"+runbooks+"/"+page) {
				t.Errorf("the runbook of %s is at %q", a.Alert, a.Annotations["runbook_url"])
			}
			text, err := os.ReadFile(filepath.Join(root, runbooks, page))
			if err != nil {
				t.Errorf("%s has no runbook: %v", a.Alert, err)
				continue
			}
			for _, heading := range []string{"# " + a.Alert, "## What it means", "## What to look at", "## What to do"} {
				if !strings.Contains("\n"+string(text), "\n"+heading+"\n") {
					t.Errorf("%s has no %q", page, heading)
				}
			}
		}
		pages, err := filepath.Glob(filepath.Join(root, runbooks, "*.md"))
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages {
			if !want[filepath.Base(page)] {
				t.Errorf("%s is the runbook of no alert", page)
			}
		}
	})
}

func TestGrafanaShowsDashboardsThatPrometheusCanAnswer(t *testing.T) {
	t.Parallel()
	var sources struct {
		Datasources []struct{ UID, URL string } `json:"datasources"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "deployments/grafana/provisioning/datasources/prometheus.yml")), &sources); err != nil {
		t.Fatal(err)
	}
	var providers struct {
		Providers []struct{ Options struct{ Path string } } `json:"providers"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "deployments/grafana/provisioning/dashboards/fairhook.yml")), &providers); err != nil {
		t.Fatal(err)
	}
	project := compose(t)
	if len(sources.Datasources) != 1 || sources.Datasources[0].URL != "http://prometheus:9090" || project.Services["prometheus"].Name == "" {
		t.Fatalf("the sources are %+v", sources.Datasources)
	}
	mounted := false
	for _, volume := range project.Services["grafana"].Volumes {
		mounted = mounted || len(providers.Providers) == 1 && volume.Target == providers.Providers[0].Options.Path && volume.Source == absolute(t, "deployments/grafana/dashboards")
	}
	if !mounted {
		t.Errorf("no dashboards are mounted where %+v looks for them", providers.Providers)
	}

	files, err := filepath.Glob(filepath.Join(root, "deployments/grafana/dashboards/*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("dashboards: %v, %v", files, err)
	}
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var dashboard struct {
			UID, Title string
			Panels     []struct {
				ID         int
				Title      string
				Datasource struct{ UID string }
				GridPos    struct{ H, W, X, Y int }
				Targets    []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(text, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		ids, places := map[int]bool{}, map[[2]int]bool{}
		for _, panel := range dashboard.Panels {
			place := [2]int{panel.GridPos.X, panel.GridPos.Y}
			if ids[panel.ID] || places[place] || len(panel.Targets) == 0 || panel.Datasource.UID != sources.Datasources[0].UID {
				t.Errorf("%s: the panel %q shares its id or place, or asks nobody", file, panel.Title)
			}
			ids[panel.ID], places[place] = true, true
			for _, target := range panel.Targets {
				rules = append(rules, rule{"panel:query:" + regexp.MustCompile(`\W`).ReplaceAllString(panel.Title, "_"), strings.ReplaceAll(target.Expr, "$__rate_interval", "1m")})
			}
		}
		if dashboard.UID == "" || dashboard.Title == "" || len(ids) == 0 {
			t.Errorf("%s is empty", file)
		}
	}
	// As recording rules, promtool reads the queries. Two of one name differ.
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboards", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "queries.yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	succeeds(t, ".", tool(t, "promtool"), "check", "rules", "--lint=none", path)
}
