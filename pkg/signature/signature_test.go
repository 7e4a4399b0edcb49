package signature_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/signature"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"pgregory.net/rapid"
)

// The vector that the reference libraries of the specification share
// (test_sign_function in Python, TestWebhookSign in Go, and so on).
const (
	vectorSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	vectorID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	vectorTime      = 1614265330
	vectorBody      = `{"test": 2432232314}`
	vectorSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

func parse(t *testing.T, secret string) []byte {
	t.Helper()
	key, err := signature.ParseSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestSign(t *testing.T) {
	t.Parallel()

	t.Run("MakesThePublishedSignature", func(t *testing.T) {
		t.Parallel()
		keys := [][]byte{parse(t, vectorSecret)}
		if got := signature.Sign(keys, vectorID, time.Unix(vectorTime, 999), []byte(vectorBody)); got != vectorSignature {
			t.Errorf("got %q, want %q", got, vectorSignature)
		}
	})

	t.Run("SignsWithEveryKeyInOrder", func(t *testing.T) {
		t.Parallel()
		old, current := parse(t, signature.NewSecret().Reveal()), parse(t, vectorSecret)
		got := signature.Sign([][]byte{current, old}, vectorID, time.Unix(vectorTime, 0), []byte(vectorBody))
		first, second, found := strings.Cut(got, " ")
		if !found || first != vectorSignature || second == first || !strings.HasPrefix(second, "v1,") {
			t.Errorf("got %q", got)
		}
	})

	t.Run("IsEmptyWithoutAKey", func(t *testing.T) {
		t.Parallel()
		if got := signature.Sign(nil, vectorID, time.Unix(vectorTime, 0), nil); got != "" {
			t.Errorf("got %q", got)
		}
	})
}

// TestSignAllocatesNothingForTheBody holds the hot path to account: a body is
// hashed where it is.
func TestSignAllocatesNothingForTheBody(t *testing.T) {
	keys := [][]byte{parse(t, vectorSecret)}
	measure := func(size int) float64 {
		body := make([]byte, size)
		return testing.AllocsPerRun(50, func() { signature.Sign(keys, vectorID, time.Unix(vectorTime, 0), body) })
	}
	if small, large := measure(10), measure(1<<20); large > small {
		t.Errorf("%v allocations for 10 bytes and %v for 1 MiB", small, large)
	}
}

func TestWhatSignMakesBothVerifiersAccept(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		signers := rapid.IntRange(1, 3).Draw(rt, "keys")
		keys := make([][]byte, signers)
		for i := range keys {
			keys[i] = rapid.SliceOfN(rapid.Byte(), signature.MinKeySize, signature.MaxKeySize).Draw(rt, "key")
		}
		id := rapid.StringMatching(`[0-9a-f-]{1,36}`).Draw(rt, "id")
		body := rapid.SliceOf(rapid.Byte()).Draw(rt, "body")
		now := time.Now()
		timestamp := strconv.FormatInt(now.Unix(), 10)
		list := signature.Sign(keys, id, now, body)

		header := http.Header{}
		header.Set(signature.HeaderID, id)
		header.Set(signature.HeaderTimestamp, timestamp)
		header.Set(signature.HeaderSignature, list)
		for i, key := range keys {
			if err := signature.Verify([][]byte{key}, id, timestamp, list, body, now, signature.DefaultTolerance); err != nil {
				rt.Fatalf("key %d: %v", i, err)
			}
			// The reference library takes a secret's text.
			reference, err := standardwebhooks.NewWebhook("whsec_" + base64.StdEncoding.EncodeToString(key))
			if err != nil {
				rt.Fatal(err)
			}
			if err := reference.Verify(body, header); err != nil {
				rt.Fatalf("key %d, reference library: %v", i, err)
			}
		}
	})
}

func TestVerify(t *testing.T) {
	t.Parallel()
	keys := [][]byte{parse(t, vectorSecret)}
	now := time.Unix(vectorTime, 0)
	stamp := strconv.Itoa(vectorTime)

	t.Run("AcceptsWhatTheReferenceLibrarySigned", func(t *testing.T) {
		t.Parallel()
		reference, err := standardwebhooks.NewWebhook(vectorSecret)
		if err != nil {
			t.Fatal(err)
		}
		list, err := reference.Sign(vectorID, now, []byte(vectorBody))
		if err != nil {
			t.Fatal(err)
		}
		if err := signature.Verify(keys, vectorID, stamp, list, []byte(vectorBody), now, 0); err != nil {
			t.Error(err)
		}
	})

	t.Run("RefusesEveryFlippedBit", func(t *testing.T) {
		t.Parallel()
		parts := [][]byte{[]byte(vectorID), []byte(stamp), []byte(vectorSignature), []byte(vectorBody)}
		for p, part := range parts {
			for i := range len(part) * 8 {
				part[i/8] ^= 1 << (i % 8)
				err := signature.Verify(keys, string(parts[0]), string(parts[1]), string(parts[2]), parts[3], now, 1<<62)
				if err == nil {
					t.Errorf("part %d with bit %d flipped, %q, was accepted", p, i, part)
				}
				part[i/8] ^= 1 << (i % 8)
			}
		}
	})

	for name, c := range map[string]struct {
		keys                [][]byte
		id, timestamp, list string
		now                 time.Time
		tolerance           time.Duration
		want                error
	}{
		"AcceptsTheVector":                        {},
		"AcceptsAnyEntryOfTheList":                {list: "v1,AAAA v1a,AAAA v2," + vectorSignature[3:] + " " + vectorSignature + " junk"},
		"AcceptsAnyOfSeveralKeys":                 {keys: [][]byte{make([]byte, 24), keys[0]}},
		"AcceptsTheEdgeOfTheTolerance":            {now: now.Add(300 * time.Second), tolerance: 300 * time.Second},
		"RefusesOnePastTheTolerance":              {now: now.Add(301 * time.Second), tolerance: 300 * time.Second, want: signature.ErrTooOld},
		"RefusesTheFutureBeyondTheTolerance":      {now: now.Add(-301 * time.Second), tolerance: 300 * time.Second, want: signature.ErrTooNew},
		"RefusesAnotherVersion":                   {list: "v2," + vectorSignature[3:], want: signature.ErrNoMatch},
		"RefusesWithoutKeys":                      {keys: [][]byte{}, want: signature.ErrNoMatch},
		"RefusesAnotherKey":                       {keys: [][]byte{make([]byte, 24)}, want: signature.ErrNoMatch},
		"RefusesAnotherID":                        {id: "msg_other", want: signature.ErrNoMatch},
		"RefusesACutSignature":                    {list: vectorSignature[:len(vectorSignature)-1], want: signature.ErrNoMatch},
		"RefusesTwoEntriesWithoutASpace":          {list: vectorSignature + vectorSignature, want: signature.ErrNoMatch},
		"RefusesAMissingID":                       {id: "-", want: signature.ErrMalformed},
		"RefusesAMissingTimestamp":                {timestamp: "-", want: signature.ErrMalformed},
		"RefusesAMissingSignature":                {list: "-", want: signature.ErrMalformed},
		"RefusesAnotherSpellingOfTheTimestamp":    {timestamp: "0" + stamp, want: signature.ErrMalformed},
		"RefusesASignedTimestamp":                 {timestamp: "+" + stamp, want: signature.ErrMalformed},
		"RefusesATimestampBeforeTheEpoch":         {timestamp: "-1", want: signature.ErrMalformed},
		"RefusesATimestampWithAFraction":          {timestamp: stamp + ".5", want: signature.ErrMalformed},
		"RefusesATimestampThatOverflows":          {timestamp: "99999999999999999999", want: signature.ErrMalformed},
		"RefusesTheLargestTimestampOfInt64":       {timestamp: "9223372036854775807", want: signature.ErrMalformed},
		"RefusesTheYear9999":                      {timestamp: "253402300799", want: signature.ErrTooNew},
		"RefusesAnUnboundedPastWithoutOverflow":   {timestamp: "0", now: time.Unix(1<<33, 0), tolerance: time.Hour, want: signature.ErrTooOld},
		"RefusesTheSignatureWithTrailingNewlines": {list: vectorSignature + "\n", want: signature.ErrNoMatch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.keys == nil {
				c.keys = keys
			}
			if c.now.IsZero() {
				c.now = now
			}
			err := signature.Verify(c.keys, value(c.id, vectorID), value(c.timestamp, stamp), value(c.list, vectorSignature),
				[]byte(vectorBody), c.now, c.tolerance)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// value is the case's own text; "-" stands for the empty one.
func value(own, otherwise string) string {
	switch own {
	case "":
		return otherwise
	case "-":
		return ""
	}
	return own
}

func TestNewSecretIsFreshAndParses(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 100 {
		secret := signature.NewSecret()
		key := parse(t, secret.Reveal())
		if len(key) < signature.MinKeySize || seen[string(key)] {
			t.Fatalf("key of %d bytes, seen before: %t", len(key), seen[string(key)])
		}
		seen[string(key)] = true
		if text := fmt.Sprintf("%v %+v %#v %s", secret, secret, secret, secret); strings.Contains(text, "whsec_") {
			t.Fatalf("the secret prints as %s", text)
		}
	}
}

func TestParseSecret(t *testing.T) {
	t.Parallel()
	encode := func(n int) string {
		return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, n)) // "+" and "/"
	}
	for name, c := range map[string]struct {
		text string
		size int // 0: refused
	}{
		"AcceptsTwentyFourBytes":       {"whsec_" + encode(24), 24},
		"AcceptsSixtyFourBytes":        {"whsec_" + encode(64), 64},
		"AcceptsWithoutThePrefix":      {encode(32), 32},
		"AcceptsWithoutPadding":        {"whsec_" + strings.TrimRight(encode(25), "="), 25},
		"RefusesTwentyThreeBytes":      {"whsec_" + encode(23), 0},
		"RefusesSixtyFiveBytes":        {"whsec_" + encode(65), 0},
		"RefusesNothing":               {"", 0},
		"RefusesThePrefixAlone":        {"whsec_", 0},
		"RefusesAnAsymmetricSecret":    {"whsk_" + encode(32), 0},
		"RefusesTheURLAlphabet":        {"whsec_" + base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, 24)), 0},
		"RefusesLineBreaks":            {"whsec_" + encode(24) + "\n", 0},
		"RefusesPaddingInTheMiddle":    {"whsec_AA==" + encode(24), 0},
		"RefusesMoreThanDuePadding":    {"whsec_" + encode(25) + "====", 0},
		"RefusesSpacesAround":          {" whsec_" + encode(24) + " ", 0},
		"RefusesThePrefixInUpperCase":  {"WHSEC_" + encode(24), 0},
		"RefusesTextThatIsNotBase64":   {"whsec_" + strings.Repeat("!", 40), 0},
		"RefusesPaddingInAnOddPlace":   {"whsec_" + encode(24)[:31] + "=", 0},
		"RefusesBytesThatAreNotASCII":  {"whsec_" + strings.Repeat("é", 20), 0},
		"RefusesTwoPrefixes":           {"whsec_whsec_" + encode(24), 0},
		"RefusesAnImplausiblyLongText": {strings.Repeat("A", 1<<16), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := signature.ParseSecret(c.text)
			if (err == nil) != (c.size > 0) || len(key) != c.size {
				t.Fatalf("got %d bytes, %v; want %d", len(key), err, c.size)
			}
			if err == nil {
				return
			}
			if encoded := strings.TrimPrefix(c.text, "whsec_"); len(encoded) > 8 && strings.Contains(err.Error(), encoded[:8]) {
				t.Errorf("the error repeats the secret: %v", err)
			}
		})
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add(vectorSecret)
	f.Add("whsec_")
	f.Add("====")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := signature.ParseSecret(text)
		if err != nil {
			return
		}
		if len(key) < signature.MinKeySize || len(key) > signature.MaxKeySize {
			t.Errorf("%q gave a key of %d bytes", text, len(key))
		}
	})
}

// FuzzVerify throws headers at the verifier: none may pass that does not have the
// true signature among its entries.
func FuzzVerify(f *testing.F) {
	f.Add(vectorID, "1614265330", vectorSignature)
	f.Add(vectorID, "1614265330", "v1, v1,= ,v1,,, "+vectorSignature)
	f.Add("", "-0", " ")
	f.Add("a.b", "1e9", "v1,v1,v1")
	key, err := signature.ParseSecret(vectorSecret)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, id, timestamp, list string) {
		err := signature.Verify([][]byte{key}, id, timestamp, list, []byte(vectorBody), time.Unix(vectorTime, 0), time.Hour)
		if err != nil {
			return
		}
		seconds, parseErr := strconv.ParseInt(timestamp, 10, 64)
		if parseErr != nil {
			t.Fatalf("timestamp %q passed", timestamp)
		}
		want := signature.Sign([][]byte{key}, id, time.Unix(seconds, 0), []byte(vectorBody))
		if !strings.Contains(" "+list+" ", " "+want+" ") {
			t.Errorf("%q passed without %q", list, want)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	key, err := signature.ParseSecret(vectorSecret)
	if err != nil {
		b.Fatal(err)
	}
	keys, body, now := [][]byte{key}, make([]byte, 1024), time.Unix(vectorTime, 0)
	b.ReportAllocs()
	for b.Loop() {
		signature.Sign(keys, vectorID, now, body)
	}
}
