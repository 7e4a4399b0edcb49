package signature_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// The vector of v1a: the example of a header in the specification, made with the
// key pair of the Svix server's test_asymmetric_key_signing over the id, time and
// body of the vector of v1.
const (
	vectorPrivateKey       = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
	vectorSeed             = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc="
	vectorPublicKey        = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
	vectorSignatureEd25519 = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
)

func parsePrivate(t *testing.T, text string) ed25519.PrivateKey {
	t.Helper()
	key, err := signature.ParsePrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestEd25519(t *testing.T) {
	t.Parallel()
	now, stamp := time.Unix(vectorTime, 0), fmt.Sprint(vectorTime)
	public, err := signature.ParsePublicKey(vectorPublicKey)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("MakesThePublishedSignatureFromEitherFormOfTheKey", func(t *testing.T) {
		t.Parallel()
		for _, text := range []string{vectorPrivateKey, vectorSeed, strings.TrimRight(vectorSeed, "=")} {
			key := parsePrivate(t, text)
			if got := signature.SignEd25519([]ed25519.PrivateKey{key}, vectorID, now, []byte(vectorBody)); got != vectorSignatureEd25519 {
				t.Errorf("%s signs %q", text, got)
			}
			if got := signature.PublicKeyText(key.Public().(ed25519.PublicKey)); got != vectorPublicKey {
				t.Errorf("%s has the public key %s", text, got)
			}
			if got := signature.PrivateKeyText(key); got != vectorPrivateKey {
				t.Errorf("%s is kept as %s", text, got)
			}
		}
	})

	t.Run("AcceptsThePublishedSignatureAmongOthers", func(t *testing.T) {
		t.Parallel()
		other := parsePrivate(t, signature.NewPrivateKey().Reveal())
		keys := []ed25519.PublicKey{other.Public().(ed25519.PublicKey), public}
		for _, list := range []string{vectorSignatureEd25519, vectorSignature + " " + vectorSignatureEd25519, "v1a,AAAA junk " + vectorSignatureEd25519} {
			if err := signature.VerifyEd25519(keys, vectorID, stamp, list, []byte(vectorBody), now, 0); err != nil {
				t.Errorf("%q: %v", list, err)
			}
		}
	})

	t.Run("RefusesEveryFlippedBit", func(t *testing.T) {
		t.Parallel()
		parts := [][]byte{[]byte(vectorID), []byte(stamp), []byte(vectorSignatureEd25519), []byte(vectorBody)}
		for p, part := range parts {
			for i := range len(part) * 8 {
				part[i/8] ^= 1 << (i % 8)
				err := signature.VerifyEd25519([]ed25519.PublicKey{public}, string(parts[0]), string(parts[1]), string(parts[2]), parts[3], now, 1<<62)
				if err == nil {
					t.Errorf("part %d with bit %d flipped, %q, was accepted", p, i, part)
				}
				part[i/8] ^= 1 << (i % 8)
			}
		}
	})

	for name, c := range map[string]struct {
		id, timestamp, list string
		now                 time.Time
		want                error
	}{
		"RefusesASymmetricSignature": {list: vectorSignature, want: signature.ErrNoMatch},
		"RefusesAnotherID":           {id: "msg_other", want: signature.ErrNoMatch},
		"RefusesWhatIsTooOld":        {now: now.Add(time.Hour), want: signature.ErrTooOld},
		"RefusesTheFuture":           {now: now.Add(-time.Hour), want: signature.ErrTooNew},
		"RefusesABadTimestamp":       {timestamp: "+" + stamp, want: signature.ErrMalformed},
		"RefusesAMissingSignature":   {list: "-", want: signature.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.now.IsZero() {
				c.now = now
			}
			err := signature.VerifyEd25519([]ed25519.PublicKey{public}, value(c.id, vectorID), value(c.timestamp, stamp),
				value(c.list, vectorSignatureEd25519), []byte(vectorBody), c.now, time.Minute)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}

	t.Run("RefusesTextsThatAreNoKeys", func(t *testing.T) {
		t.Parallel()
		raw, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(vectorPrivateKey, "whsk_"))
		raw[40] ^= 1 // the public half does not fit
		for _, text := range []string{
			"", "whsk_", vectorPublicKey, strings.TrimPrefix(vectorPrivateKey, "whsk_"), vectorPrivateKey + "AAAA", "whsk_" + strings.Repeat("A", 44),
			vectorPrivateKey[:40] + "\n" + vectorPrivateKey[40:], "whsk_" + base64.StdEncoding.EncodeToString(raw), "whsk_" + base64.StdEncoding.EncodeToString(raw[:31]),
		} {
			if _, err := signature.ParsePrivateKey(text); err == nil {
				t.Errorf("the private key %q was accepted", text)
			} else if len(text) > 20 && strings.Contains(err.Error(), text[10:20]) {
				t.Errorf("the error repeats the key: %v", err)
			}
		}
		for _, text := range []string{"", "whpk_", vectorPrivateKey, strings.TrimPrefix(vectorPublicKey, "whpk_"), vectorPublicKey + "AAAA"} {
			if _, err := signature.ParsePublicKey(text); err == nil {
				t.Errorf("the public key %q was accepted", text)
			}
		}
	})
}

// The vector of GitHub's documentation, "Testing the webhook payload validation":
// https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
const (
	gitHubSecret    = "It's a Secret to Everybody"
	gitHubBody      = "Hello, World!"
	gitHubSignature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
)

func TestGitHub(t *testing.T) {
	t.Parallel()
	if got := signature.SignGitHub([]byte(gitHubSecret), []byte(gitHubBody)); got != gitHubSignature {
		t.Errorf("the published signature comes out as %q", got)
	}
	keys := [][]byte{[]byte("another secret"), []byte(gitHubSecret)}
	if err := signature.VerifyGitHub(keys, gitHubSignature, []byte(gitHubBody)); err != nil {
		t.Errorf("the published signature is refused: %v", err)
	}
	for header, want := range map[string]error{
		"": signature.ErrMalformed, strings.TrimPrefix(gitHubSignature, "sha256="): signature.ErrMalformed,
		"sha256=": signature.ErrNoMatch, strings.ToUpper(gitHubSignature): signature.ErrMalformed, gitHubSignature + " ": signature.ErrNoMatch,
	} {
		if err := signature.VerifyGitHub(keys, header, []byte(gitHubBody)); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", header, err, want)
		}
	}
	if err := signature.VerifyGitHub(keys, gitHubSignature, []byte(gitHubBody+"!")); !errors.Is(err, signature.ErrNoMatch) {
		t.Errorf("another body: %v", err)
	}
}

// stripeVectors were made by stripe-go v84.4.1, webhook.GenerateTestSignedPayload.
var stripeVectors = []struct {
	body, secret string
	at           int64
	header       string
}{
	{"{\n  \"id\": \"evt_test_webhook\",\n  \"object\": \"event\"\n}", "whsec_test_secret", 12345, "t=12345,v1=2672d138c9a412830f3bfe2ecc5bfb3277cf6f5b49d0119d77dd6cb64da1257e"},
	{"{\"test\": 2432232314}", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1614265330, "t=1614265330,v1=2e37df5d4a028c51a7f3133d64ae1e300d2c2c900f1b1d49d4369ad2530f8964"},
	{"", "It's a Secret to Everybody", 1700000000, "t=1700000000,v1=98c32e0b3aa090e576d675650c120eb14f45b36f0a3286ec1167119d239106e4"},
}

func TestStripe(t *testing.T) {
	t.Parallel()
	for _, v := range stripeVectors {
		at := time.Unix(v.at, 0)
		if got := signature.SignStripe([][]byte{[]byte(v.secret)}, at, []byte(v.body)); got != v.header {
			t.Errorf("%q is signed %q, want %q", v.body, got, v.header)
		}
		keys := [][]byte{[]byte("another"), []byte(v.secret)}
		both := signature.SignStripe(keys, at, []byte(v.body))
		if n := strings.Count(both, ",v1="); n != 2 || !strings.HasSuffix(both, v.header[strings.Index(v.header, ",v1="):]) {
			t.Errorf("with two keys: %q", both)
		}
		for _, header := range []string{v.header, both, v.header + ",v0=abc", "v0=x," + v.header} {
			if err := signature.VerifyStripe(keys, header, []byte(v.body), at.Add(time.Minute), time.Minute); err != nil {
				t.Errorf("%q: %v", header, err)
			}
		}
		for header, want := range map[string]error{
			"": signature.ErrMalformed,
			strings.Replace(v.header, "t=", "t=0", 1):                                  signature.ErrMalformed,
			v.header + ",t=1":                                                          signature.ErrMalformed,
			v.header[strings.Index(v.header, "v1="):]:                                  signature.ErrMalformed,
			strings.Replace(v.header, "v1=", "v0=", 1):                                 signature.ErrNoMatch,
			v.header[:len(v.header)-1]:                                                 signature.ErrNoMatch,
			strings.ToUpper(v.header[:0]) + strings.Replace(v.header, "v1=", "V1=", 1): signature.ErrNoMatch,
		} {
			if err := signature.VerifyStripe(keys, header, []byte(v.body), at, time.Minute); !errors.Is(err, want) {
				t.Errorf("%q: %v, want %v", header, err, want)
			}
		}
		if err := signature.VerifyStripe(keys, v.header, []byte(v.body), at.Add(2*time.Minute), time.Minute); !errors.Is(err, signature.ErrTooOld) {
			t.Errorf("too old: %v", err)
		}
	}
	if got := signature.SignStripe(nil, time.Now(), nil); got != "" {
		t.Errorf("without a key: %q", got)
	}
}

func template(t *testing.T, edit func(*webhook.SignatureTemplate)) *signature.Template {
	t.Helper()
	described := webhook.DefaultSignatureTemplate()
	described.Header = "X-Acme-Signature"
	edit(&described)
	c, err := signature.NewTemplate(&described)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 0)
	body := []byte("body with {id}")
	separator := ",v1="

	t.Run("DescribesTheOtherSchemes", func(t *testing.T) {
		t.Parallel()
		gitHub := template(t, func(d *webhook.SignatureTemplate) { d.Signed, d.Value = "{body}", "sha256={signature}" })
		if got := gitHub.Sign([][]byte{[]byte(gitHubSecret)}, "id", at, []byte(gitHubBody)); got != gitHubSignature {
			t.Errorf("GitHub's: %q", got)
		}
		stripe := template(t, func(d *webhook.SignatureTemplate) { d.Value, d.Separator = "t={timestamp},v1={signature}", &separator })
		for _, v := range stripeVectors {
			keys := [][]byte{[]byte("new"), []byte(v.secret)}
			got := stripe.Sign(keys, "id", time.Unix(v.at, 0), []byte(v.body))
			if got != signature.SignStripe(keys, time.Unix(v.at, 0), []byte(v.body)) {
				t.Errorf("Stripe's: %q", got)
			}
		}
		standard := template(t, func(d *webhook.SignatureTemplate) {
			d.Signed, d.Value, d.Encoding = "{id}.{timestamp}.{body}", "v1,{signature}", webhook.EncodingBase64
		})
		key := parse(t, vectorSecret)
		if got := standard.Sign([][]byte{key}, vectorID, time.Unix(vectorTime, 0), []byte(vectorBody)); got != vectorSignature {
			t.Errorf("Standard Webhooks': %q", got)
		}
	})

	t.Run("HasEveryAlgorithmAndEncoding", func(t *testing.T) {
		t.Parallel()
		sum := func(mac interface {
			Write([]byte) (int, error)
			Sum([]byte) []byte
		},
		) []byte {
			_, _ = mac.Write(body)
			return mac.Sum(nil)
		}
		key := []byte("a secret of some length")
		for want, edit := range map[string]func(d *webhook.SignatureTemplate){
			hex.EncodeToString(sum(hmac.New(sha1.New, key))): func(d *webhook.SignatureTemplate) { d.Algorithm = webhook.AlgorithmSHA1 },
			base64.StdEncoding.EncodeToString(sum(hmac.New(sha512.New, key))): func(d *webhook.SignatureTemplate) {
				d.Algorithm, d.Encoding = webhook.AlgorithmSHA512, webhook.EncodingBase64
			},
			base64.RawURLEncoding.EncodeToString(sum(hmac.New(sha1.New, key))): func(d *webhook.SignatureTemplate) {
				d.Algorithm, d.Encoding = webhook.AlgorithmSHA1, webhook.EncodingBase64URL
			},
		} {
			c := template(t, func(d *webhook.SignatureTemplate) { d.Signed = "{body}"; edit(d) })
			if got := c.Sign([][]byte{key}, "id", at, body); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	})

	t.Run("SignsWithTheOldestWhereThereIsRoomForOne", func(t *testing.T) {
		t.Parallel()
		c := template(t, func(d *webhook.SignatureTemplate) {})
		both := c.Sign([][]byte{[]byte("new"), []byte("old")}, "id", at, body)
		if both != c.Sign([][]byte{[]byte("old")}, "id", at, body) {
			t.Errorf("got %q", both)
		}
		if got := c.Sign(nil, "id", at, body); got != "" {
			t.Errorf("without a key: %q", got)
		}
	})

	t.Run("VerifiesWhatItSigned", func(t *testing.T) {
		t.Parallel()
		for _, sep := range []*string{nil, &separator} {
			c := template(t, func(d *webhook.SignatureTemplate) {
				d.Signed, d.Value, d.Separator = "{id}|{body}|{timestamp}", "id={id};{signature};{timestamp}", sep
			})
			signed := c.Sign([][]byte{[]byte("new"), []byte("old")}, "id", at, body)
			if err := c.Verify([][]byte{[]byte("old")}, "id", at, signed, body); err != nil {
				t.Errorf("%q: %v", signed, err)
			}
			for name, err := range map[string]error{
				"another key":       c.Verify([][]byte{[]byte("else")}, "id", at, signed, body),
				"another id":        c.Verify([][]byte{[]byte("old")}, "di", at, signed, body),
				"another time":      c.Verify([][]byte{[]byte("old")}, "id", at.Add(time.Second), signed, body),
				"another body":      c.Verify([][]byte{[]byte("old")}, "id", at, signed, []byte("x")),
				"a cut value":       c.Verify([][]byte{[]byte("old")}, "id", at, signed[:len(signed)-1], body),
				"an empty value":    c.Verify([][]byte{[]byte("old")}, "id", at, "", body),
				"without signature": c.Verify([][]byte{[]byte("old")}, "id", at, "id=id;;1700000000", body),
			} {
				if !errors.Is(err, signature.ErrNoMatch) {
					t.Errorf("%s: %v, want ErrNoMatch", name, err)
				}
			}
		}
	})

	t.Run("RefusesWhatTheRulesRefuse", func(t *testing.T) {
		t.Parallel()
		bad := webhook.DefaultSignatureTemplate()
		bad.Header, bad.Algorithm = "X-Acme", "md5"
		if _, err := signature.NewTemplate(&bad); err == nil {
			t.Error("was accepted")
		}
	})
}

func TestReadSecret(t *testing.T) {
	t.Parallel()
	encoded := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("k"), 24))
	for text, want := range map[string]webhook.SecretKind{
		vectorSecret: webhook.SecretSymmetric,
		encoded:      webhook.SecretSymmetric, // without its prefix
		"757107ea0eb2509fc211221cce984b8a37570b6d": webhook.SecretSymmetric, // base64 to Standard Webhooks' libraries too
		gitHubSecret:                    webhook.SecretText,
		"päßwörter sind länger":         webhook.SecretText,
		"0123456789abcdef":              webhook.SecretText,
		strings.Repeat("abcdefgh-", 28): webhook.SecretText,
	} {
		if got, err := signature.ReadSecret(text); err != nil || got != want {
			t.Errorf("%q is %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "short", "whsec_", "whsec_short", "whsec_not base64 but long enough!", vectorPrivateKey, vectorPublicKey,
		strings.Repeat("a!", 20), strings.Repeat("abcdefgh-", 29), "a secret with\na line break", "a secret with a \x00 in it", "not UTF-8 at all: \xff\xfe",
	} {
		kind, err := signature.ReadSecret(text)
		if err == nil {
			t.Errorf("%q is accepted as %q", text, kind)
		} else if len(text) > 12 && !strings.HasPrefix(text, "wh") && strings.Contains(err.Error(), text) {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

func TestSigner(t *testing.T) {
	t.Parallel()
	at, body := time.Unix(1_700_000_000, 0), []byte("body")
	described := webhook.DefaultSignatureTemplate()
	described.Header = "X-Acme"
	signed := func(t *testing.T, s *signature.Signer) map[string]string {
		t.Helper()
		headers := map[string]string{}
		s.Sign("id", at, body, func(name, value string) {
			if headers[name] != "" {
				t.Errorf("%s is set twice", name)
			}
			headers[name] = value
		})
		return headers
	}
	secrets := []signature.Secret{
		{Kind: webhook.SecretEd25519, Text: vectorPrivateKey},
		{Kind: webhook.SecretText, Text: gitHubSecret},
		{Kind: webhook.SecretSymmetric, Text: vectorSecret},
		{Kind: "of a newer release", Text: "x"},
	}

	t.Run("UsesTheKeyAndTheTextOfEachSecretAsItsSchemeAsks", func(t *testing.T) {
		t.Parallel()
		s, err := signature.NewSigner(webhook.Schemes(), &described, secrets)
		if err != nil || !s.CanSign() {
			t.Fatalf("can sign: %v, %v", s.CanSign(), err)
		}
		texts := [][]byte{[]byte(gitHubSecret), []byte(vectorSecret)}
		own, err := signature.NewTemplate(&described)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"Webhook-Signature": signature.Sign([][]byte{[]byte(gitHubSecret), parse(t, vectorSecret)}, "id", at, body) + " " +
				signature.SignEd25519([]ed25519.PrivateKey{parsePrivate(t, vectorPrivateKey)}, "id", at, body),
			"X-Hub-Signature-256": signature.SignGitHub([]byte(vectorSecret), body), // the oldest
			"Stripe-Signature":    signature.SignStripe(texts, at, body),
			"x-acme":              own.Sign(texts, "id", at, body),
		}
		if got := signed(t, s); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got\n%v, want\n%v", got, want)
		}
	})

	t.Run("MakesEachSchemesHeaderAlone", func(t *testing.T) {
		t.Parallel()
		for scheme, header := range map[webhook.Scheme]string{
			webhook.SchemeStandard: "Webhook-Signature", webhook.SchemeStandardEd25519: "Webhook-Signature",
			webhook.SchemeGitHub: "X-Hub-Signature-256", webhook.SchemeStripe: "Stripe-Signature", webhook.SchemeTemplate: "x-acme",
		} {
			s, err := signature.NewSigner([]webhook.Scheme{scheme}, &described, secrets)
			if err != nil {
				t.Fatal(err)
			}
			if got := signed(t, s); len(got) != 1 || got[header] == "" {
				t.Errorf("%s makes %v", scheme, got)
			}
		}
	})

	t.Run("CannotSignWithoutAKeyForEachScheme", func(t *testing.T) {
		t.Parallel()
		symmetric, private := secrets[2:3], secrets[:1]
		for name, c := range map[string]struct {
			schemes []webhook.Scheme
			secrets []signature.Secret
			can     bool
		}{
			"nothing":              {[]webhook.Scheme{webhook.SchemeStandard}, nil, false},
			"no private key":       {[]webhook.Scheme{webhook.SchemeStandard, webhook.SchemeStandardEd25519}, symmetric, false},
			"no symmetric secret":  {[]webhook.Scheme{webhook.SchemeStandardEd25519, webhook.SchemeGitHub}, private, false},
			"a private key alone":  {[]webhook.Scheme{webhook.SchemeStandardEd25519}, private, true},
			"a secret alone":       {[]webhook.Scheme{webhook.SchemeStandard}, symmetric, true},
			"an unknown scheme":    {[]webhook.Scheme{"of a newer release"}, secrets, false},
			"an unknown one too":   {[]webhook.Scheme{"of a newer release", webhook.SchemeGitHub}, secrets, true},
			"no scheme":            {nil, secrets, false},
			"only what is unknown": {[]webhook.Scheme{webhook.SchemeStandard}, secrets[3:], false},
		} {
			s, err := signature.NewSigner(c.schemes, nil, c.secrets)
			if err != nil || s.CanSign() != c.can {
				t.Errorf("%s: can sign %v, %v", name, s.CanSign(), err)
			}
		}
		var none *signature.Signer
		if none.CanSign() {
			t.Error("none can sign")
		}
	})

	t.Run("IsNotMadeOfWhatCannotBeRead", func(t *testing.T) {
		t.Parallel()
		for name, c := range map[string]struct {
			template *webhook.SignatureTemplate
			secret   signature.Secret
		}{
			"a template that is missing": {nil, secrets[2]},
			"a broken template":          {&webhook.SignatureTemplate{}, secrets[2]},
			"a broken secret":            {&described, signature.Secret{Kind: webhook.SecretSymmetric, Text: "whsec_no"}},
			"a broken private key":       {&described, signature.Secret{Kind: webhook.SecretEd25519, Text: "whsk_no"}},
		} {
			if _, err := signature.NewSigner(webhook.Schemes(), c.template, []signature.Secret{c.secret}); err == nil {
				t.Errorf("%s is accepted", name)
			}
		}
	})
}

// TestSignerIsFreeForThoseWhoSignByV1Alone holds the hot path to account.
func TestSignerIsFreeForThoseWhoSignByV1Alone(t *testing.T) {
	s, err := signature.NewSigner([]webhook.Scheme{webhook.SchemeStandard}, nil, []signature.Secret{{Kind: webhook.SecretSymmetric, Text: vectorSecret}})
	if err != nil {
		t.Fatal(err)
	}
	keys, at, body := [][]byte{parse(t, vectorSecret)}, time.Unix(vectorTime, 0), []byte(vectorBody)
	var header string
	alone := testing.AllocsPerRun(100, func() { header = signature.Sign(keys, vectorID, at, body) })
	with := testing.AllocsPerRun(100, func() { s.Sign(vectorID, at, body, func(_, value string) { header = value }) })
	if with > alone || header != vectorSignature {
		t.Errorf("%v allocations, and %v for Sign itself; signed %q", with, alone, header)
	}
}

func BenchmarkSigner(b *testing.B) {
	described := webhook.DefaultSignatureTemplate()
	described.Header = "X-Acme"
	secrets := []signature.Secret{{Kind: webhook.SecretSymmetric, Text: vectorSecret}, {Kind: webhook.SecretEd25519, Text: vectorPrivateKey}}
	body := make([]byte, 1024)
	for _, scheme := range webhook.Schemes() {
		b.Run(string(scheme), func(b *testing.B) {
			s, err := signature.NewSigner([]webhook.Scheme{scheme}, &described, secrets)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.Sign(vectorID, time.Unix(vectorTime, 0), body, func(string, string) {})
			}
		})
	}
}

func TestWhatATemplateSignsItVerifies(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		words := rapid.SliceOfDistinct(rapid.SampledFrom([]string{"{id}", "{timestamp}", ".", "a=", "; "}), rapid.ID)
		d := webhook.DefaultSignatureTemplate()
		d.Header = "X-Acme"
		d.Signed = strings.Join(slices.Concat(words.Draw(rt, "before"), []string{"{body}"}, words.Draw(rt, "after")), "")
		d.Value = strings.Join(slices.Concat(words.Draw(rt, "head"), []string{"{signature}"}, words.Draw(rt, "tail")), "")
		d.Algorithm = rapid.SampledFrom(webhook.Algorithms()).Draw(rt, "algorithm")
		d.Encoding = rapid.SampledFrom(webhook.Encodings()).Draw(rt, "encoding")
		if rapid.Bool().Draw(rt, "several") {
			separator := rapid.SampledFrom([]string{",", " v1,", ";s="}).Draw(rt, "separator")
			d.Separator = &separator
		}
		if len(d.Check("")) > 0 {
			rt.Skip("a value that begins or ends with a space")
		}
		c, err := signature.NewTemplate(&d)
		if err != nil {
			rt.Fatal(err)
		}
		keys := [][]byte{[]byte("new"), []byte("old")}
		body := rapid.SliceOf(rapid.Byte()).Draw(rt, "body")
		at := time.Unix(rapid.Int64Range(0, 1<<33).Draw(rt, "at"), 0)
		value := c.Sign(keys, "some-id", at, body)
		if err := c.Verify(keys[1:], "some-id", at, value, body); err != nil {
			rt.Fatalf("%q: %v", value, err)
		}
		if d.Separator != nil {
			if err := c.Verify(keys[:1], "some-id", at, value, body); err != nil {
				rt.Fatalf("%q by the new secret: %v", value, err)
			}
		}
	})
}

// Whatever a secret's text is, it is refused or signs.
func FuzzReadSecret(f *testing.F) {
	for _, text := range []string{"", vectorSecret, vectorPrivateKey, gitHubSecret, "whsec_", "whsec_====", "0123456789abcdef", "\xff"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		kind, err := signature.ReadSecret(text)
		if err != nil {
			if kind != "" && kind != webhook.SecretText {
				t.Errorf("%q is %q and %v", text, kind, err)
			}
			return
		}
		s, err := signature.NewSigner(webhook.Schemes()[:1], nil, []signature.Secret{{Kind: kind, Text: text}})
		if err != nil || !s.CanSign() {
			t.Errorf("%q was accepted as %q and cannot sign: %v", text, kind, err)
		}
	})
}

func FuzzParsePrivateKey(f *testing.F) {
	for _, text := range []string{"", vectorSecret, vectorPrivateKey, vectorSeed, "whsk_====", "whsk_"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := signature.ParsePrivateKey(text)
		if err != nil {
			return
		}
		again, err := signature.ParsePrivateKey(signature.PrivateKeyText(key))
		if err != nil || !again.Equal(key) {
			t.Errorf("%q is not what it is kept as: %v", text, err)
		}
	})
}
