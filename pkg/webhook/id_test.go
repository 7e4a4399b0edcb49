package webhook

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"pgregory.net/rapid"
)

func TestNewID(t *testing.T) {
	t.Parallel()

	t.Run("IsAVersion7UUIDOfItsMoment", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			now := time.UnixMicro(rapid.Int64Range(0, 1<<52).Draw(t, "micros")).UTC()
			id := NewID(now)
			parsed, err := uuid.Parse(id.String())
			if err != nil || parsed.Version() != 7 || parsed.Variant() != uuid.RFC4122 {
				t.Fatalf("%s: version %d, variant %s, %v", id, parsed.Version(), parsed.Variant(), err)
			}
			if want := now.Truncate(time.Millisecond); !id.Time().Equal(want) {
				t.Fatalf("%s is of %s, want %s", id, id.Time(), want)
			}
		})
	})

	t.Run("SortsByMomentToTheMicrosecond", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			a := time.UnixMicro(rapid.Int64Range(0, 1<<52).Draw(t, "micros"))
			b := a.Add(time.Duration(rapid.Int64Range(1, 1e6).Draw(t, "later")) * time.Microsecond)
			if first, second := NewID(a), NewID(b); first.String() >= second.String() {
				t.Fatalf("%s of %s does not sort before %s of %s", first, a, second, b)
			}
		})
	})

	t.Run("IsUnique", func(t *testing.T) {
		t.Parallel()
		now := time.Now()
		seen := map[ID]bool{}
		for range 10_000 {
			id := NewID(now)
			if seen[id] || id.IsZero() {
				t.Fatalf("%s twice", id)
			}
			seen[id] = true
		}
	})
}

func TestIDRoundTrips(t *testing.T) {
	t.Parallel()
	id := NewID(time.Now())
	encoded, err := json.Marshal(id)
	if err != nil || string(encoded) != `"`+id.String()+`"` {
		t.Fatalf("JSON %s, %v", encoded, err)
	}
	var decoded ID
	if err := json.Unmarshal(encoded, &decoded); err != nil || decoded != id {
		t.Errorf("decoded %s, %v", decoded, err)
	}
	value, err := id.UUIDValue()
	var scanned ID
	if err != nil || scanned.ScanUUID(value) != nil || scanned != id {
		t.Errorf("scanned %s, %v", scanned, err)
	}
	if scanned.ScanUUID(pgtype.UUID{}) == nil {
		t.Error("NULL was read into an id")
	}
}

func FuzzParseID(f *testing.F) {
	for _, seed := range []string{
		"019b7ca9-8c89-7000-a919-07b7da6f56cb", "019B7CA9-8C89-7000-A919-07B7DA6F56CB", "",
		"{019b7ca9-8c89-7000-a919-07b7da6f56cb}", "urn:uuid:019b7ca9-8c89-7000-a919-07b7da6f56cb", "019b7ca98c897000a91907b7da6f56cb",
		"019b7ca9-8c89-7000-a919-07b7da6f56c", "zzzzzzzz-8c89-7000-a919-07b7da6f56cb",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if len(s) != 36 {
			t.Errorf("%q has another spelling than the canonical one", s)
		}
		if again, err := ParseID(id.String()); err != nil || again != id {
			t.Errorf("%q became %s", s, id)
		}
	})
}
