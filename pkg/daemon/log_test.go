package daemon

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestLogger(t *testing.T) {
	t.Parallel()

	t.Run("WritesJSONWithWhoAndInUTC", func(t *testing.T) {
		t.Parallel()
		var out bytes.Buffer
		logger, _ := (&Common{LogLevel: "info", LogFormat: "json"}).NewLogger(&out, "ingest", "host-1-abc")
		logger.With(slog.String("event_id", "e")).WithGroup("g").Info("accepted", slog.Int("n", 1))
		var line map[string]any
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line["role"] != "ingest" || line["instance"] != "host-1-abc" || line["version"] != Version() || line["event_id"] != "e" || line["msg"] != "accepted" {
			t.Errorf("got %v", line)
		}
		if at, _ := line["time"].(string); !strings.HasSuffix(at, "Z") {
			t.Errorf("the time is %q", at)
		}
	})

	t.Run("WritesTimesOfOtherZonesInUTC", func(t *testing.T) {
		t.Parallel()
		var out bytes.Buffer
		logger, _ := NewLogger(&out, "info", "text")
		record := slog.NewRecord(time.Date(2026, 1, 2, 3, 0, 0, 0, time.FixedZone("", 3600)), slog.LevelInfo, "x", 0)
		if err := logger.Handler().Handle(t.Context(), record); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "time=2026-01-02T02:00:00.000Z") {
			t.Errorf("got %s", out.String())
		}
	})

	t.Run("ChangesItsLevelWhileItRuns", func(t *testing.T) {
		t.Parallel()
		for name, level := range logLevels {
			var out bytes.Buffer
			logger, current := NewLogger(&out, name, "text")
			if current.Level() != level || logger.Enabled(t.Context(), level-1) {
				t.Errorf("%s is %v", name, current.Level())
			}
			current.Set(slog.LevelDebug)
			logger.Debug("now")
			if !strings.Contains(out.String(), "msg=now") {
				t.Errorf("got %q", out.String())
			}
		}
	})
}

func TestInstanceIDFitsWhateverTheHostIsCalled(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^[a-zA-Z0-9._-]{1,100}$`)
	rapid.Check(t, func(t *rapid.T) {
		id := instanceID(rapid.String().Draw(t, "host"), rapid.IntRange(1, 1<<22).Draw(t, "pid"))
		if !form.MatchString(id) {
			t.Fatalf("got %q", id)
		}
	})
	if id := instanceID(strings.Repeat("h", 300), 42); len(id) != 100 || !regexp.MustCompile(`^h+-42-[0-9a-f]{8}$`).MatchString(id) {
		t.Errorf("got %q", id)
	}
	if first, second := NewInstanceID(), NewInstanceID(); first == second {
		t.Errorf("%q twice", first)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	if v := Version(); v == "" || strings.ContainsAny(v, " \n") {
		t.Errorf("got %q", v)
	}
	commit := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef0123"}}
	dirty := append(commit[:1:1], debug.BuildSetting{Key: "vcs.modified", Value: "true"})
	for _, tc := range []struct {
		module   string
		settings []debug.BuildSetting
		want     string
	}{
		{"v1.2.3", nil, "v1.2.3"},
		{"(devel)", nil, "devel"},
		{"", commit, "devel+0123456789ab"},
		{"(devel)", dirty, "devel+0123456789ab-dirty"},
	} {
		info := &debug.BuildInfo{Main: debug.Module{Version: tc.module}, Settings: tc.settings}
		if got := versionOf(info); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}
