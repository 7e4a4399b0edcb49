package postgres

import (
	"testing"

	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// An upgrade of River that brings a migration must be noticed, since that
// migration may touch what ours changed.
func TestRiverVersionIsTheNewestOfThePinnedRiver(t *testing.T) {
	t.Parallel()
	migrator, err := rivermigrate.New(riverpgxv5.New(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	all := migrator.AllVersions()
	if newest := all[len(all)-1].Version; newest != riverVersion {
		t.Errorf("River's newest migration is %d, and riverVersion is %d", newest, riverVersion)
	}
}

func TestATableLosesWhatIsMissingAfterwards(t *testing.T) {
	t.Parallel()
	before := table{oid: 7, name: "events", columns: []int16{1, 2}}
	for name, test := range map[string]struct {
		after []table
		want  bool
	}{
		"TheTable":            {nil, true},
		"AColumn":             {[]table{{oid: 7, name: "events", columns: []int16{1}}}, true},
		"AColumnMadeAnew":     {[]table{{oid: 7, name: "events", columns: []int16{1, 3}}}, true},
		"ATableMadeAnew":      {[]table{{oid: 8, name: "events", columns: []int16{1, 2}}}, true},
		"NothingWhenRenamed":  {[]table{{oid: 7, name: "happenings", columns: []int16{1, 2}}}, false},
		"NothingWhenExtended": {[]table{{oid: 6}, {oid: 7, name: "events", columns: []int16{1, 2, 3}}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := before.loses(test.after); got != test.want {
				t.Errorf("loses is %v, want %v", got, test.want)
			}
		})
	}
}
