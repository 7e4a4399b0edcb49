//go:build unix

package fairhook_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

// deploymentFiles are the texts about running Fairhook that name its settings and
// metrics: what is in deployments, but for its tests, and the pages about that.
func deploymentFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	add := func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[path] = string(text)
	}
	if err := filepath.WalkDir("deployments", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == "deployments/check" || strings.HasPrefix(entry.Name(), ".env"):
			if entry.IsDir() {
				return filepath.SkipDir
			}
		case !entry.IsDir():
			add(path)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("docs/runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "docs/deploying.md", "docs/instances.md") {
		add(page)
	}
	return files
}

// What is said about Fairhook names no variable and no flag that its programs do not
// have. deployments/check gives them the environments themselves; what the pages about
// the tool say is tested with it.
func TestDocumentedSettingsExist(t *testing.T) {
	t.Parallel()
	variables, flags := map[string]bool{}, map[string]bool{}
	for _, command := range commandSettings(t) {
		for _, s := range command.Settings {
			variables[s.Env], flags["--"+s.Flag] = true, true
		}
	}
	// What the pages' commands call what one has to know for them.
	for _, variable := range []string{"FAIRHOOK_URL", "FAIRHOOK_KEY"} {
		variables[variable] = true
	}
	flags["--help"], flags["--lossy"] = true, true                     // no settings; the latter is fairhook import's
	variables["FAIRHOOK_SOME_NAME"], flags["--some-name"] = true, true // how settings are explained
	files := deploymentFiles(t)
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "README.md", "CHANGELOG.md") {
		if slices.Contains([]string{"docs/tool.md", "docs/migrating.md", "docs/benchmarks.md"}, page) {
			continue
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		files[page] = string(text)
	}
	variable, flag := regexp.MustCompile(`FAIRHOOK_[A-Z0-9_]*[A-Z0-9]`), regexp.MustCompile("`(--[a-z][a-z-]*)")
	seen := 0
	for path, text := range files {
		for _, name := range variable.FindAllString(text, -1) {
			seen++
			if !variables[name] {
				t.Errorf("%s names %s, which no program has", path, name)
			}
		}
		if filepath.Ext(path) != ".md" {
			continue
		}
		for _, match := range flag.FindAllStringSubmatch(text, -1) {
			seen++
			if !flags[match[1]] {
				t.Errorf("%s names %s, which no program has", path, match[1])
			}
		}
	}
	if seen < 50 {
		t.Errorf("found only %d names", seen)
	}
}

// series are the metrics of programs that run: the values of each label of each name.
type series map[string]map[string]map[string]bool

// scrape adds what a program exports.
func (s series) scrape(t *testing.T, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	sample, label := regexp.MustCompile(`^(\w+)(\{.*\})? `), regexp.MustCompile(`(\w+)="([^"]*)"`)
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		match := sample.FindStringSubmatch(lines.Text())
		if match == nil {
			continue
		}
		if s[match[1]] == nil {
			s[match[1]] = map[string]map[string]bool{}
		}
		for _, l := range label.FindAllStringSubmatch(match[2], -1) {
			if s[match[1]][l[1]] == nil {
				s[match[1]][l[1]] = map[string]bool{}
			}
			s[match[1]][l[1]][l[2]] = true
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

// post makes a request with a key, which must succeed.
func post(t *testing.T, address, key, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		t.Fatalf("POST %s: %s", address, response.Status)
	}
}

// ofPrometheus are the labels that Prometheus adds to what it scrapes.
var ofPrometheus = []string{"job", "instance", "namespace"}

// openSets are labels whose values are not all there from the start.
var openSets = []string{"code", "route"}

// faults is what in a PromQL query no running Fairhook answers: a metric that it does
// not export, a label that the query's metrics do not have, or a value that it never
// has.
func (s series) faults(query string) (faults []string) {
	known := map[string]map[string]bool{}
	for _, name := range regexp.MustCompile(`\bfairhook_\w+`).FindAllString(query, -1) {
		if s[name] == nil {
			faults = append(faults, "nothing exports "+name)
		}
		for label, values := range s[name] {
			if known[label] == nil {
				known[label] = map[string]bool{}
			}
			maps.Copy(known[label], values)
		}
	}
	hasLabel := func(label string) bool {
		has := known[label] != nil || slices.Contains(ofPrometheus, label)
		if !has {
			faults = append(faults, "nothing in it has the label "+label)
		}
		return has
	}
	for _, match := range regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"`).FindAllStringSubmatch(query, -1) {
		if !hasLabel(match[1]) || slices.Contains(ofPrometheus, match[1]) || slices.Contains(openSets, match[1]) {
			continue
		}
		for value := range strings.SplitSeq(match[2], "|") {
			if !known[match[1]][value] {
				faults = append(faults, match[1]+" is never "+value)
			}
		}
	}
	for _, group := range regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`).FindAllStringSubmatch(query, -1) {
		for label := range strings.SplitSeq(group[1], ",") {
			hasLabel(strings.TrimSpace(label))
		}
	}
	return faults
}

// queries are those of the alerts, the dashboards, and what docs/instances.md says
// to watch, by where they are.
func queries(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for path, text := range deploymentFiles(t) {
		switch {
		case strings.HasPrefix(path, "deployments/prometheus/rules/"):
			for _, match := range regexp.MustCompile(`(?m)^ +expr: '(.*)'$`).FindAllStringSubmatch(text, -1) {
				found[path] = append(found[path], strings.ReplaceAll(match[1], "''", "'"))
			}
		case strings.HasPrefix(path, "deployments/grafana/dashboards/"):
			var dashboard struct {
				Panels []struct{ Targets []struct{ Expr string } }
			}
			if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
				t.Fatal(err)
			}
			for _, panel := range dashboard.Panels {
				for _, target := range panel.Targets {
					found[path] = append(found[path], target.Expr)
				}
			}
		case path == "docs/instances.md":
			for _, match := range regexp.MustCompile("(?m)^\\| `([^`]*fairhook_[^`]*)`").FindAllStringSubmatch(text, -1) {
				found[path] = append(found[path], match[1])
			}
		}
	}
	if len(found) < 3 {
		t.Fatalf("there are queries in %v only", slices.Collect(maps.Keys(found)))
	}
	return found
}

// blocks are the code blocks of a page in a language.
func blocks(text, language string) (found []string) {
	for _, part := range strings.Split(text, "\n```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```")
		found = append(found, block+"\n")
	}
	return found
}

// A running Fairhook has the metrics that the alerts, the dashboards, the chart and
// the pages name, and what the runbooks say to look at can be looked at.
func TestDeploymentsAskForWhatARunningFairhookHas(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	dev := startDev(t, "--database-url", db.URL)
	address := regexp.MustCompile(`its metrics are (http://\S+)/metrics`)
	dispatcher := address.FindStringSubmatch(dev.wait(t, address.MatchString))[1]
	exports := dev.wait(t, func(line string) bool { return strings.HasPrefix(line, "export FAIRHOOK_URL=") })
	ingest := regexp.MustCompile(`FAIRHOOK_URL='([^']*)'`).FindStringSubmatch(exports)[1]
	dev.wait(t, func(line string) bool { return strings.HasPrefix(line, "Ctrl-C stops everything") })

	// These two come with the first of their kind: an attempt, and one that has its
	// receiver's lane wait.
	key := regexp.MustCompile(`FAIRHOOK_KEY='([^']*)'`).FindStringSubmatch(exports)[1]
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	defer refuses.Close()
	post(t, ingest+"/v1/webhooks", key, `{"tenant": "refused", "url": "`+refuses.URL+`"}`)
	post(t, ingest+"/v1/events", key, `{"tenant": "refused", "type": "any", "payload": {}}`)
	exported, deadline := series{}, time.After(time.Minute)
	for exported["fairhook_attempts_total"] == nil || exported["fairhook_gate_changes_total"] == nil {
		exported.scrape(t, ingest+"/metrics")
		exported.scrape(t, dispatcher+"/metrics")
		select {
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			t.Fatal("no attempt and no gate is counted")
		}
	}
	for path, all := range queries(t) {
		for _, query := range all {
			for _, fault := range exported.faults(query) {
				t.Errorf("%s asks %q: %s", path, query, fault)
			}
		}
	}
	// Elsewhere a metric may be meant by how its name begins.
	for path, text := range deploymentFiles(t) {
		for _, name := range regexp.MustCompile(`\bfairhook_\w+`).FindAllString(text, -1) {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(exported)), func(metric string) bool {
				return metric == name || strings.HasSuffix(name, "_") && strings.HasPrefix(metric, name) || strings.HasPrefix(metric, name+"_")
			}) {
				t.Errorf("%s names %s, which nothing exports", path, name)
			}
		}
	}

	instances, err := os.ReadFile("docs/instances.md")
	if err != nil {
		t.Fatal(err)
	}
	duties := slices.Collect(maps.Keys(exported["fairhook_duty_last_success_timestamp_seconds"]["duty"]))
	for _, duty := range duties {
		if !strings.Contains(string(instances), "\n| `"+duty+"` |") {
			t.Errorf("docs/instances.md does not say what the duty %s does", duty)
		}
	}
	if len(duties) < 5 {
		t.Errorf("found only the duties %v", duties)
	}

	ran := 0
	for path, text := range deploymentFiles(t) {
		if filepath.Dir(path) != "docs/runbooks" {
			continue
		}
		for _, script := range blocks(text, "sh") {
			ran++
			if output, err := typeIn(t, exports+"\nDISPATCHER='"+dispatcher+"'\n"+script); err != nil || len(output) == 0 {
				t.Errorf("%s: %v\n%s%s", path, err, script, output)
			}
		}
		for _, statement := range blocks(text, "sql") {
			ran++
			if _, err := db.Pool.Exec(t.Context(), statement); err != nil {
				t.Errorf("%s: %v\n%s", path, err, statement)
			}
		}
	}
	if ran < 20 {
		t.Errorf("the runbooks have only %d things to look at", ran)
	}
	dev.stop(t)
}

func TestQueriesForWhatIsNotThereAreFound(t *testing.T) {
	t.Parallel()
	exported := series{"fairhook_a_total": {"reason": {"x": true, "y": true}}, "fairhook_b_bucket": {"le": {"1": true}}}
	for query, want := range map[string]int{
		`sum by (reason) (rate(fairhook_a_total{reason=~"x|y", job="z"}[5m])) > 0`:                          0,
		`histogram_quantile(0.99, sum by (le) (rate(fairhook_b_bucket[5m])))`:                               0,
		`up{job=~"fairhook-.*"} == 0`:                                                                       0,
		`rate(fairhook_a_total{reason=~"x|z"}[5m])`:                                                         1,
		`rate(fairhook_c_total[5m])`:                                                                        1,
		`rate(fairhook_a_total{code="x"}[5m])`:                                                              1,
		`sum by (reason, route) (fairhook_a_total) / on (tenant) fairhook_a_total != 0 and fairhook_b == 1`: 3,
	} {
		if got := exported.faults(query); len(got) != want {
			t.Errorf("of %q it says %q", query, got)
		}
	}
}
