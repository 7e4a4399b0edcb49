package courier_test

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/courier"
	"pgregory.net/rapid"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestParseRetryAfter(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		header string
		want   time.Duration // 0: not present
	}{
		"Seconds":                    {"120", 2 * time.Minute},
		"LeadingZeros":               {"0005", 5 * time.Second},
		"SpacesAround":               {" 7\t", 7 * time.Second},
		"OneHour":                    {"3600", time.Hour},
		"MoreThanAnHourIsCut":        {"3601", time.Hour},
		"AYearIsCut":                 {"31536000", time.Hour},
		"MoreDigitsThanFitAnInteger": {"99999999999999999999999999999999999", time.Hour},
		"Zero":                       {"0", 0},
		"ManyZeros":                  {"00000000000000000000000000", 0},
		"Nothing":                    {"", 0},
		"OnlySpaces":                 {"  ", 0},
		"NegativeSeconds":            {"-5", 0},
		"SignedSeconds":              {"+5", 0},
		"Fractions":                  {"1.5", 0},
		"Hexadecimal":                {"0x10", 0},
		"AUnit":                      {"5s", 0},
		"Words":                      {"soon", 0},
		"OtherDigits":                {"٥", 0},
		"ADate":                      {"Sun, 01 Mar 2026 12:02:00 GMT", 2 * time.Minute},
		"ARFC850Date":                {"Sunday, 01-Mar-26 12:02:00 GMT", 2 * time.Minute},
		"AnAsctimeDate":              {"Sun Mar  1 12:02:00 2026", 2 * time.Minute},
		"ADateFarAheadIsCut":         {"Fri, 31 Dec 9999 23:59:59 GMT", time.Hour},
		"ADateThatHasPassed":         {"Sun, 01 Mar 2026 11:59:59 GMT", 0},
		"ADateLongPast":              {"Thu, 01 Jan 1970 00:00:00 GMT", 0},
		"AnImpossibleDate":           {"Sun, 31 Feb 2026 12:02:00 GMT", 0},
		"AnISODate":                  {"2026-03-01T12:02:00Z", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := courier.ParseRetryAfter(c.header, noon)
			if got != c.want || ok != (c.want > 0) {
				t.Errorf("%q: got %v, %t; want %v", c.header, got, ok, c.want)
			}
		})
	}

	t.Run("KeepsEveryWaitUpToAnHourInEitherForm", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			seconds := rapid.IntRange(1, 3600).Draw(t, "seconds")
			want := time.Duration(seconds) * time.Second
			if got, ok := courier.ParseRetryAfter(strconv.Itoa(seconds), noon); got != want || !ok {
				t.Fatalf("%d seconds: got %v, %t", seconds, got, ok)
			}
			if got, ok := courier.ParseRetryAfter(noon.Add(want).Format(http.TimeFormat), noon); got != want || !ok {
				t.Fatalf("date in %d seconds: got %v, %t", seconds, got, ok)
			}
		})
	})
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, header := range []string{"", "0", "1", "-1", "3600", "99999999999999999999", "Sun, 01 Mar 2026 12:02:00 GMT", "Sunday, 01-Mar-26 12:02:00 GMT", "1e9"} {
		f.Add(header, int64(1_772_000_000))
	}
	f.Fuzz(func(t *testing.T, header string, now int64) {
		got, ok := courier.ParseRetryAfter(header, time.Unix(now, 0))
		if ok != (got > 0) || got < 0 || got > courier.MaxRetryAfter {
			t.Errorf("%q: got %v, %t", header, got, ok)
		}
	})
}
