// Package fairhook_test checks what no package can check of itself: which way
// imports point, and that the documentation says what the code does.
package fairhook_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fairhook/fairhook/"

// layers are the packages from the bottom up: one may import those on lines
// above it in this list, and none on its own line. A package that is not here
// has no place yet: give it one.
var layers = [][]string{
	{"sql", "pkg/client", "pkg/client/receiver", "pkg/openapi"},
	{"pkg/webhook"},
	{"pkg/strictjson", "pkg/enqueue"},
	{"pkg/schema"},
	{"pkg/postgres/pglocal"},
	{"pkg/postgres"},
	{"pkg/daemon", "pkg/job"},
	{"pkg/seal"},
	{"pkg/signature", "pkg/reseal"},
	{"pkg/egress"},
	{"pkg/identity"},
	{"pkg/courier"},
	{"pkg/fairqueue"},
	{"pkg/catalog", "pkg/heartbeat"},
	{"pkg/limit"},
	{"pkg/intake"},
	{"pkg/api"},
	{"pkg/ingest", "pkg/dispatch"},
	{"cmd/dispatcher", "cmd/fairhook", "cmd/ingest", "cmd/migrate"},
	{"docs/examples/go/producer", "docs/examples/go/receiver"},
}

// testSupport reports whether a package is for tests, as the standard library's
// httptest and iotest are: it may import testing, and nothing but tests may
// import it.
func testSupport(name string) bool { return strings.HasSuffix(name, "test") }

// onlyFrom says who alone may import a package, or what is below it.
var onlyFrom = map[string]struct {
	importers []string
	because   string
}{
	module + "pkg/daemon":                     {[]string{"pkg/ingest", "pkg/dispatch", "cmd/"}, "it is about processes"},
	module + "pkg/client":                     {[]string{"cmd/fairhook", "docs/examples/"}, "it is the SDK of those outside"},
	module + "pkg/postgres/pglocal":           {[]string{"pkg/postgres/pgtest", "cmd/fairhook"}, "services use the database they are given"},
	"riverqueue.com/riverui":                  {[]string{"pkg/ingest"}, "the job view is ingest's"},
	"os/signal":                               {[]string{"pkg/daemon"}, "signals are Execute's"},
	"github.com/riverqueue/river/rivershared": {[]string{"pkg/fairqueue"}, "it is internal to River"},
}

// never lists what no package that is part of a program may import.
var never = map[string]string{
	"testing":                     "it is for tests",
	"net/http/httptest":           "it is for tests",
	"github.com/stretchr/testify": "it is for tests",
	"pgregory.net/rapid":          "it is for tests",
	"github.com/prometheus/client_golang/prometheus/promauto": "registries come through constructors",
	"log": "loggers come through constructors, as *slog.Logger",
}

type listedPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// name is the package's path inside the module.
func (p listedPackage) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func listPackages(t *testing.T) []listedPackage {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...", "./pkg/client/...")
	output, err := command.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var packages []listedPackage
	decoder := json.NewDecoder(strings.NewReader(string(output)))
	for {
		var p listedPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.ImportPath+"/" != module { // this package: tests only
			packages = append(packages, p)
		}
	}
	if len(packages) < 10 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	return packages
}

func layerOf(name string) int {
	return slices.IndexFunc(layers, func(layer []string) bool { return slices.Contains(layer, name) })
}

// within reports whether path is root or below it.
func within(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

// faults is what is wrong with a package's imports.
func faults(p listedPackage) []string {
	if testSupport(p.name()) {
		return nil
	}
	from := layerOf(p.name())
	if from < 0 {
		return []string{"has no place in the layers"}
	}
	var found []string
	for _, path := range p.Imports {
		if name, ours := strings.CutPrefix(path, module); ours {
			switch {
			case testSupport(name):
				found = append(found, "imports "+name+", which is for tests")
			case layerOf(name) >= from:
				found = append(found, "imports "+name+", which is not below it")
			}
		}
		for forbidden, because := range never {
			if path == forbidden || strings.Contains(forbidden, "/") && within(path, forbidden) {
				found = append(found, "imports "+path+": "+because)
			}
		}
		for target, rule := range onlyFrom {
			allowed := within(p.ImportPath, target) || slices.ContainsFunc(rule.importers, func(importer string) bool {
				return within(p.name(), strings.TrimSuffix(importer, "/"))
			})
			if within(path, target) && !allowed {
				found = append(found, "imports "+path+", which is for "+strings.Join(rule.importers, " and ")+" alone: "+rule.because)
			}
		}
	}
	return found
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	for _, p := range listPackages(t) {
		for _, fault := range faults(p) {
			t.Errorf("%s %s", p.name(), fault)
		}
	}
}

func TestTheRulesForImportsFindWhatBreaksThem(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, imports string
		breaks        bool
	}{
		{"pkg/ingest", module + "pkg/intake", false},
		{"pkg/ingest", module + "pkg/dispatch", true},
		{"pkg/dispatch", module + "pkg/ingest", true},
		{"pkg/webhook", module + "pkg/postgres", true},
		{"pkg/dispatch", module + "pkg/daemon", false},
		{"pkg/intake", module + "pkg/daemon", true},
		{"cmd/ingest", module + "pkg/daemon", false},
		{"cmd/ingest", module + "pkg/client", true},
		{"pkg/intake", module + "pkg/postgres/pgtest", true},
		{"pkg/postgres/pgtest", "testing", false},
		{"pkg/courier", "testing", true},
		{"pkg/courier", "github.com/stretchr/testify/require", true},
		{"pkg/catalog", "github.com/riverqueue/river/rivershared/riverpilot", true},
		{"pkg/fairqueue", "github.com/riverqueue/river/rivershared/riverpilot", false},
		{"pkg/ingest", "os/signal", true},
		{"pkg/intake", "log", true},
		{"pkg/intake", "log/slog", false},
		{"pkg/util", "fmt", true},
	} {
		got := faults(listedPackage{ImportPath: module + tc.name, Imports: []string{tc.imports}})
		if (len(got) > 0) != tc.breaks {
			t.Errorf("%s imports %s: %q", tc.name, tc.imports, got)
		}
	}
}

// The SDK's users get none of the server's dependencies.
func TestTheClientStandsAlone(t *testing.T) {
	t.Parallel()
	for _, p := range listPackages(t) {
		if !within(p.name(), "pkg/client") {
			continue
		}
		for _, path := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if strings.HasPrefix(path, module) && !within(strings.TrimPrefix(path, module), "pkg/client") {
				t.Errorf("%s imports %s of the server", p.name(), path)
			}
		}
	}
}
