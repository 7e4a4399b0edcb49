package receiver_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	cryptorand "crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairhook/fairhook/pkg/client/receiver"
)

// The vectors that implementations of the specification share: v1 from its own
// libraries (test_sign_function in Python, TestWebhookSign in Go, and so on), v1a
// from the specification's example and Svix's server (test_asymmetric_key_signing).
const (
	vectorSecret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	vectorPublic  = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
	vectorID      = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	vectorTime    = "1614265330"
	vectorBody    = `{"test": 2432232314}`
	vectorV1      = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	vectorV1a     = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
	vectorPrivate = "6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
)

// century is a tolerance under which the vectors are never too old.
const century = 100 * 365 * 24 * time.Hour

func newVerifier(t testing.TB, keys ...string) *receiver.Verifier {
	t.Helper()
	v, err := receiver.NewVerifier(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func timeless(t testing.TB, keys ...string) *receiver.Verifier {
	t.Helper()
	v, err := newVerifier(t, keys...).WithTolerance(century)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func headers(id, timestamp, list string) http.Header {
	h := http.Header{}
	h.Set(receiver.HeaderID, id)
	h.Set(receiver.HeaderTimestamp, timestamp)
	h.Set(receiver.HeaderSignature, list)
	return h
}

// sign is an independent implementation of both versions.
func sign(key any, id string, at time.Time, body []byte) string {
	content := fmt.Appendf(nil, "%s.%d.%s", id, at.Unix(), body)
	switch key := key.(type) {
	case ed25519.PrivateKey:
		return "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(key, content))
	case []byte:
		mac := hmac.New(sha256.New, key)
		mac.Write(content)
		return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	panic("no key")
}

func secretText(key []byte) string { return "whsec_" + base64.StdEncoding.EncodeToString(key) }

func publicText(key ed25519.PrivateKey) string {
	return "whpk_" + base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
}

func TestVerify(t *testing.T) {
	t.Parallel()
	otherSecret := secretText(make([]byte, 24))
	for name, c := range map[string]struct {
		keys   []string
		change func(http.Header)
		body   string
		want   error
	}{
		"AcceptsTheVectorOfV1":               {keys: []string{vectorSecret}},
		"AcceptsTheSecretWithoutItsPrefix":   {keys: []string{strings.TrimPrefix(vectorSecret, "whsec_")}},
		"AcceptsAnyOfSeveralSecrets":         {keys: []string{otherSecret, vectorSecret}},
		"AcceptsTheVectorOfV1a":              {keys: []string{vectorPublic}, change: set(receiver.HeaderSignature, vectorV1a)},
		"AcceptsV1aAmongOthers":              {keys: []string{vectorPublic}, change: set(receiver.HeaderSignature, "v1,AAAA v3,x "+vectorV1+" "+vectorV1a)},
		"AcceptsEitherOfBothVersions":        {keys: []string{otherSecret, vectorPublic}, change: set(receiver.HeaderSignature, vectorV1+" "+vectorV1a)},
		"PassesOverEntriesItCannotRead":      {keys: []string{vectorSecret}, change: set(receiver.HeaderSignature, " v1 v1, , v1a,=== junk "+vectorV1)},
		"RefusesV1aWithoutAPublicKey":        {keys: []string{vectorSecret}, change: set(receiver.HeaderSignature, vectorV1a), want: receiver.ErrNoMatch},
		"RefusesV1WithoutASecret":            {keys: []string{vectorPublic}, want: receiver.ErrNoMatch},
		"RefusesV1OfAnotherSecret":           {keys: []string{otherSecret}, want: receiver.ErrNoMatch},
		"RefusesTheMACUnderAnotherVersion":   {keys: []string{vectorSecret}, change: set(receiver.HeaderSignature, "v2"+vectorV1[2:]), want: receiver.ErrNoMatch},
		"RefusesAnotherBody":                 {keys: []string{vectorSecret}, body: vectorBody + " ", want: receiver.ErrNoMatch},
		"RefusesAnotherBodyOfV1a":            {keys: []string{vectorPublic}, body: vectorBody + " ", change: set(receiver.HeaderSignature, vectorV1a), want: receiver.ErrNoMatch},
		"RefusesAnotherID":                   {keys: []string{vectorSecret}, change: set(receiver.HeaderID, "msg_other"), want: receiver.ErrNoMatch},
		"RefusesAnIDWithADot":                {keys: []string{vectorSecret}, change: set(receiver.HeaderID, "msg.1"), want: receiver.ErrMalformed},
		"RefusesAnIDWithoutEnd":              {keys: []string{vectorSecret}, change: set(receiver.HeaderID, strings.Repeat("x", 257)), want: receiver.ErrMalformed},
		"RefusesAMissingID":                  {keys: []string{vectorSecret}, change: without(receiver.HeaderID), want: receiver.ErrMalformed},
		"RefusesAMissingTimestamp":           {keys: []string{vectorSecret}, change: without(receiver.HeaderTimestamp), want: receiver.ErrMalformed},
		"RefusesAMissingSignature":           {keys: []string{vectorSecret}, change: without(receiver.HeaderSignature), want: receiver.ErrMalformed},
		"RefusesAnEmptySignature":            {keys: []string{vectorSecret}, change: set(receiver.HeaderSignature, ""), want: receiver.ErrMalformed},
		"RefusesTwoIDs":                      {keys: []string{vectorSecret}, change: again(receiver.HeaderID, "msg_other"), want: receiver.ErrMalformed},
		"RefusesTwoTimestamps":               {keys: []string{vectorSecret}, change: again(receiver.HeaderTimestamp, "1"), want: receiver.ErrMalformed},
		"RefusesTwoSignatureHeaders":         {keys: []string{vectorSecret}, change: again(receiver.HeaderSignature, vectorV1), want: receiver.ErrMalformed},
		"RefusesAnotherSpellingOfTheTime":    {keys: []string{vectorSecret}, change: set(receiver.HeaderTimestamp, "0"+vectorTime), want: receiver.ErrMalformed},
		"RefusesAFractionOfASecond":          {keys: []string{vectorSecret}, change: set(receiver.HeaderTimestamp, vectorTime+".0"), want: receiver.ErrMalformed},
		"RefusesATimeThatOverflows":          {keys: []string{vectorSecret}, change: set(receiver.HeaderTimestamp, "9223372036854775808"), want: receiver.ErrMalformed},
		"RefusesATimeFarBeyond":              {keys: []string{vectorSecret}, change: set(receiver.HeaderTimestamp, "253402300799"), want: receiver.ErrTooNew},
		"RefusesMoreEntriesThanItTries":      {keys: []string{vectorSecret}, change: set(receiver.HeaderSignature, strings.Repeat("v1,"+strings.Repeat("A", 44)+" ", 16)+vectorV1), want: receiver.ErrNoMatch},
		"RefusesAnotherSpellingOfTheV1Bytes": {keys: []string{vectorSecret}, change: set(receiver.HeaderSignature, strings.TrimSuffix(vectorV1, "E=")+"F="), want: receiver.ErrNoMatch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := headers(vectorID, vectorTime, vectorV1)
			if c.change != nil {
				c.change(h)
			}
			if c.body == "" {
				c.body = vectorBody
			}
			message, err := timeless(t, c.keys...).Verify(h, []byte(c.body))
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if (message == nil) != (err != nil) {
				t.Errorf("got message %v with error %v", message, err)
			}
		})
	}

	t.Run("ReadsFairhooksHeaders", func(t *testing.T) {
		t.Parallel()
		h := headers(vectorID, vectorTime, vectorV1)
		h.Set(receiver.HeaderEventType, "order.paid")
		h.Set(receiver.HeaderAttempt, "3")
		h.Set("Content-Type", "application/json")
		got, err := timeless(t, vectorSecret).Verify(h, []byte(vectorBody))
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != vectorID || got.Timestamp.Unix() != 1614265330 || string(got.Body) != vectorBody ||
			got.Type != "order.paid" || got.Attempt != 3 || got.ContentType != "application/json" {
			t.Errorf("got %+v", got)
		}
	})

	t.Run("MakesNothingOfAnAttemptThatIsNoNumber", func(t *testing.T) {
		t.Parallel()
		for _, attempt := range []string{"", "x", "-1", "99999999999999999999"} {
			h := headers(vectorID, vectorTime, vectorV1)
			h.Set(receiver.HeaderAttempt, attempt)
			got, err := timeless(t, vectorSecret).Verify(h, []byte(vectorBody))
			if err != nil || got.Attempt != 0 && attempt != "99999999999999999999" {
				t.Errorf("attempt %q: got %+v, %v", attempt, got, err)
			}
		}
	})

	t.Run("RefusesEveryFlippedBit", func(t *testing.T) {
		t.Parallel()
		for _, list := range []string{vectorV1, vectorV1a} {
			v := timeless(t, vectorSecret, vectorPublic)
			parts := [][]byte{[]byte(vectorID), []byte(vectorTime), []byte(list), []byte(vectorBody)}
			for p, part := range parts {
				for i := range len(part) * 8 {
					part[i/8] ^= 1 << (i % 8)
					h := headers(string(parts[0]), string(parts[1]), string(parts[2]))
					if _, err := v.Verify(h, parts[3]); err == nil {
						t.Errorf("part %d with bit %d flipped, %q, was accepted", p, i, part)
					}
					part[i/8] ^= 1 << (i % 8)
				}
			}
		}
	})

	t.Run("KnowsThePrivateKeyOfTheVector", func(t *testing.T) {
		t.Parallel()
		private, err := base64.StdEncoding.DecodeString(vectorPrivate)
		if err != nil {
			t.Fatal(err)
		}
		if got := sign(ed25519.PrivateKey(private), vectorID, time.Unix(1614265330, 0), []byte(vectorBody)); got != vectorV1a {
			t.Errorf("the tests' own signature is %q", got)
		}
	})
}

func set(name, value string) func(http.Header) { return func(h http.Header) { h.Set(name, value) } }

func again(name, value string) func(http.Header) { return func(h http.Header) { h.Add(name, value) } }
func without(name string) func(http.Header)      { return func(h http.Header) { h.Del(name) } }

func TestTolerance(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		age  time.Duration
		want error
	}{
		"AcceptsTheEdgeOfThePast":      {age: 5 * time.Minute},
		"RefusesASecondMore":           {age: 5*time.Minute + time.Second, want: receiver.ErrTooOld},
		"AcceptsTheEdgeOfTheFuture":    {age: -5 * time.Minute},
		"RefusesASecondBeyond":         {age: -5*time.Minute - time.Second, want: receiver.ErrTooNew},
		"AcceptsWhatIsSignedRightNow":  {},
		"RefusesWhatWasSignedLongBack": {age: 20 * 365 * 24 * time.Hour, want: receiver.ErrTooOld},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { // the clock stands still
				key := bytes.Repeat([]byte{7}, 32)
				at := time.Now().Add(-c.age)
				h := headers("msg_1", strconv.FormatInt(at.Unix(), 10), sign(key, "msg_1", at, nil))
				if _, err := newVerifier(t, secretText(key)).Verify(h, nil); !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			})
		})
	}

	t.Run("MustNotBeNegative", func(t *testing.T) {
		t.Parallel()
		if _, err := newVerifier(t, vectorSecret).WithTolerance(-1); err == nil {
			t.Error("no error")
		}
	})
}

// TestWhatIsSignedVerifiesAndNothingElseDoes draws keys of both versions, ids and
// bodies, and changes one thing at a time.
func TestWhatIsSignedVerifiesAndNothingElseDoes(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	draw := rand.New(rand.NewPCG(seed, 0))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(draw.Uint32())
		}
		return b
	}
	newKey := func() (any, string) {
		if draw.IntN(2) == 0 {
			key := random(24 + draw.IntN(41))
			return key, secretText(key)
		}
		key := ed25519.NewKeyFromSeed(random(ed25519.SeedSize))
		return key, publicText(key)
	}
	for range 500 {
		var list, texts []string
		id := fmt.Sprintf("%x", random(1+draw.IntN(20)))
		body := random(draw.IntN(200))
		now := time.Now()
		for range 1 + draw.IntN(4) {
			key, text := newKey()
			list, texts = append(list, sign(key, id, now, body)), append(texts, text)
		}
		h := headers(id, strconv.FormatInt(now.Unix(), 10), strings.Join(list, " "))
		for _, text := range texts { // each alone suffices
			if _, err := newVerifier(t, text).Verify(h, body); err != nil {
				t.Fatalf("seed %d: %s: %v", seed, text, err)
			}
		}
		_, stranger := newKey()
		if _, err := newVerifier(t, stranger).Verify(h, body); !errors.Is(err, receiver.ErrNoMatch) {
			t.Fatalf("seed %d: a stranger's key: %v", seed, err)
		}
		v := newVerifier(t, texts...)
		if _, err := v.Verify(h, append(body, 'x')); !errors.Is(err, receiver.ErrNoMatch) {
			t.Fatalf("seed %d: a longer body: %v", seed, err)
		}
		h.Set(receiver.HeaderTimestamp, strconv.FormatInt(now.Unix()+1, 10))
		if _, err := v.Verify(h, body); !errors.Is(err, receiver.ErrNoMatch) {
			t.Fatalf("seed %d: a later timestamp: %v", seed, err)
		}
	}
}

func TestNewVerifier(t *testing.T) {
	t.Parallel()
	encode := func(n int) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, n)) }
	for name, c := range map[string]struct {
		keys  []string
		fault string // what the error says; empty: none
	}{
		"TakesTwentyFourBytes":        {[]string{"whsec_" + encode(24)}, ""},
		"TakesSixtyFourBytes":         {[]string{"whsec_" + encode(64)}, ""},
		"TakesSecretsWithoutPadding":  {[]string{"whsec_" + strings.TrimRight(encode(25), "=")}, ""},
		"TakesBothKindsTogether":      {[]string{vectorSecret, vectorPublic}, ""},
		"NeedsAKey":                   {nil, "there must be a key"},
		"RefusesAnEmptyKey":           {[]string{""}, "24 to 64 bytes"},
		"RefusesAShortSecret":         {[]string{"whsec_" + encode(23)}, "24 to 64 bytes"},
		"RefusesALongSecret":          {[]string{"whsec_" + encode(65)}, "24 to 64 bytes"},
		"RefusesTextThatIsNotBase64":  {[]string{"whsec_!!!!"}, "base64"},
		"RefusesLineBreaks":           {[]string{vectorSecret + "\n"}, "base64"},
		"RefusesAShortPublicKey":      {[]string{"whpk_" + encode(31)}, "32 bytes"},
		"RefusesAPrivateKey":          {[]string{"whsk_" + vectorPrivate}, "private key"},
		"NamesTheKeyThatIsWrong":      {[]string{vectorSecret, "whsec_?"}, "key 1"},
		"RefusesAPublicKeyUnderOther": {[]string{"whsec_" + vectorPublic}, "base64"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := receiver.NewVerifier(c.keys...)
			if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
				t.Fatalf("got %v, want %q", err, c.fault)
			}
			for _, key := range c.keys {
				if err != nil && len(key) > 12 && strings.Contains(err.Error(), key[6:12]) {
					t.Errorf("the error repeats the key: %v", err)
				}
			}
		})
	}

	t.Run("DoesNotPrintItsKeys", func(t *testing.T) {
		t.Parallel()
		v := newVerifier(t, vectorSecret)
		if text := fmt.Sprintf("%v %+v %#v %s", v, v, v, v); strings.Contains(text, "0x") || len(text) > 100 {
			t.Errorf("it prints as %s", text)
		}
	})
}

func TestSetKeys(t *testing.T) {
	t.Parallel()
	v := timeless(t, secretText(make([]byte, 32)))
	h := headers(vectorID, vectorTime, vectorV1)
	if _, err := v.Verify(h, []byte(vectorBody)); !errors.Is(err, receiver.ErrNoMatch) {
		t.Fatalf("got %v", err)
	}
	if err := v.SetKeys("whsec_?"); err == nil {
		t.Error("a bad key was taken")
	}
	if err := v.SetKeys(vectorSecret); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(h, []byte(vectorBody)); err != nil {
		t.Errorf("with the new key: %v", err)
	}
}

func TestParseJWKS(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(cryptorand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := base64.RawURLEncoding.EncodeToString(public)
	for name, c := range map[string]struct {
		set  string
		want int // keys; 0: an error
	}{
		"ReadsAKey":                      {`{"keys":[{"kty":"OKP","crv":"Ed25519","use":"sig","kid":"1","alg":"EdDSA","x":"` + x + `"}]}`, 1},
		"PassesOverOtherKinds":           {`{"keys":[{"kty":"RSA","n":"AQ"},{"kty":"OKP","crv":"X25519","x":"AA"},{"kty":"OKP","crv":"Ed25519","x":"` + x + `"}]}`, 1},
		"PassesOverKeysForEncryption":    {`{"keys":[{"kty":"OKP","crv":"Ed25519","use":"enc","x":"` + x + `"}]}`, 0},
		"RefusesASetWithoutKeys":         {`{"keys":[]}`, 0},
		"RefusesWhatIsNoSet":             {`{"error":"not found"}`, 0},
		"RefusesWhatIsNotJSON":           {`<html>`, 0},
		"RefusesAKeyThatIsTooShort":      {`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAA"}]}`, 0},
		"RefusesMoreKeysThanAreSensible": {`{"keys":[` + strings.Repeat(`{"kty":"OKP","crv":"Ed25519","x":"`+x+`"},`, 40) + `{}]}`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			keys, err := receiver.ParseJWKS([]byte(c.set))
			if (err == nil) != (c.want > 0) || len(keys) != c.want {
				t.Fatalf("got %q, %v", keys, err)
			}
			for _, key := range keys {
				if key != publicText(private) {
					t.Errorf("got %q", key)
				}
			}
		})
	}
}

// FuzzVerify throws headers at the verifier: none may pass that does not have a true
// signature among its entries.
func FuzzVerify(f *testing.F) {
	f.Add(vectorID, vectorTime, vectorV1, vectorBody)
	f.Add(vectorID, vectorTime, "v1, v1,= ,v1,,, "+vectorV1+" "+vectorV1a, vectorBody)
	f.Add("", "-0", " ", "")
	f.Add("a.b", "1e9", "v1,v1,v1", "1.")
	v := timeless(f, vectorSecret, vectorPublic)
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(vectorSecret, "whsec_"))
	if err != nil {
		f.Fatal(err)
	}
	private, err := base64.StdEncoding.DecodeString(vectorPrivate)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, id, timestamp, list, body string) {
		message, err := v.Verify(headers(id, timestamp, list), []byte(body))
		if err != nil {
			return
		}
		entries := " " + list + " "
		v1 := sign(secret, id, message.Timestamp, []byte(body))
		v1a := sign(ed25519.PrivateKey(private), id, message.Timestamp, []byte(body))
		if !strings.Contains(entries, " "+v1+" ") && !strings.Contains(entries, " "+v1a+" ") {
			t.Errorf("%q passed without %q or %q", list, v1, v1a)
		}
	})
}

func FuzzParseJWKS(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4"}]}`))
	f.Fuzz(func(t *testing.T, set []byte) {
		keys, err := receiver.ParseJWKS(set)
		if err != nil {
			return
		}
		if _, err := receiver.NewVerifier(keys...); err != nil {
			t.Errorf("the keys of %q are none: %v", set, err)
		}
	})
}
