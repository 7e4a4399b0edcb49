package seal_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/seal"
	"pgregory.net/rapid"
)

func testKey(t *testing.T, fill byte) seal.Key {
	t.Helper()
	key, err := seal.ParseKey(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, seal.KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	raw := bytes.Repeat([]byte{0xfb}, seal.KeySize) // all "+" and "/" in base64

	t.Run("AcceptsStandardBase64PaddedOrNot", func(t *testing.T) {
		t.Parallel()
		padded := base64.StdEncoding.EncodeToString(raw)
		sealed := seal.New(mustParse(t, padded)).Seal([]byte("secret"), "here")
		for _, text := range []string{padded, strings.TrimRight(padded, "="), " " + padded + "\n"} {
			if _, err := seal.New(mustParse(t, text)).Open(sealed, "here"); err != nil {
				t.Errorf("key %q: %v", text, err)
			}
		}
	})

	for name, text := range map[string]string{
		"Nothing":           "",
		"ThirtyOneBytes":    base64.StdEncoding.EncodeToString(raw[:31]),
		"ThirtyThreeBytes":  base64.StdEncoding.EncodeToString(append(raw[:32:32], 1)),
		"TheURLAlphabet":    base64.URLEncoding.EncodeToString(raw),
		"TooMuchPadding":    base64.StdEncoding.EncodeToString(raw) + "=",
		"LineBreaksInside":  "AAAA\n" + strings.Repeat("A", 39),
		"StrayTrailingBits": strings.Repeat("A", 42) + "B=",
		"Hexadecimal":       strings.Repeat("00", 32),
	} {
		t.Run("Refuses"+name, func(t *testing.T) {
			t.Parallel()
			_, err := seal.ParseKey(text)
			if err == nil {
				t.Fatalf("%q was accepted", text)
			}
			if !strings.Contains(err.Error(), "openssl rand -base64 32") {
				t.Errorf("the error does not say how to make a key: %v", err)
			}
			if len(text) > 8 && strings.Contains(err.Error(), text[:8]) {
				t.Errorf("the error repeats the key: %v", err)
			}
		})
	}
}

func mustParse(t *testing.T, text string) seal.Key {
	t.Helper()
	key, err := seal.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestBox(t *testing.T) {
	t.Parallel()
	box := seal.New(testKey(t, 1))

	t.Run("OpensWhatItSealed", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			plaintext := rapid.SliceOf(rapid.Byte()).Draw(t, "plaintext")
			context := rapid.String().Draw(t, "context")
			sealed := box.Seal(plaintext, context)
			if len(sealed) != len(plaintext)+seal.Overhead {
				t.Fatalf("%d bytes were sealed into %d", len(plaintext), len(sealed))
			}
			got, err := box.Open(sealed, context)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Fatalf("opened %q, %v; sealed %q", got, err, plaintext)
			}
		})
	})

	t.Run("NeverSealsTheSameTextAlike", func(t *testing.T) {
		t.Parallel()
		if bytes.Equal(box.Seal([]byte("secret"), "a"), box.Seal([]byte("secret"), "a")) {
			t.Error("two sealed texts are equal: the nonce repeats")
		}
	})

	t.Run("RefusesAnotherContext", func(t *testing.T) {
		t.Parallel()
		sealed := box.Seal([]byte("secret"), "webhook a")
		if _, err := box.Open(sealed, "webhook b"); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
	})

	t.Run("TellsAWrongKeyApart", func(t *testing.T) {
		t.Parallel()
		sealed := box.Seal([]byte("secret"), "a")
		if _, err := seal.New(testKey(t, 2)).Open(sealed, "a"); !errors.Is(err, seal.ErrWrongKey) {
			t.Errorf("got %v, want ErrWrongKey", err)
		}
	})

	t.Run("RefusesEveryFlippedBit", func(t *testing.T) {
		t.Parallel()
		sealed := box.Seal([]byte("secret"), "a")
		for i := range len(sealed) * 8 {
			damaged := bytes.Clone(sealed)
			damaged[i/8] ^= 1 << (i % 8)
			if got, err := box.Open(damaged, "a"); err == nil {
				t.Fatalf("bit %d flipped, and it opened as %q", i, got)
			}
		}
	})

	t.Run("RefusesEveryPrefix", func(t *testing.T) {
		t.Parallel()
		sealed := box.Seal([]byte("secret"), "a")
		for i := range sealed {
			if _, err := box.Open(sealed[:i], "a"); !errors.Is(err, seal.ErrCorrupt) {
				t.Fatalf("the first %d bytes: got %v, want ErrCorrupt", i, err)
			}
		}
	})
}

func TestKeysAndBoxesPrintAsStars(t *testing.T) {
	t.Parallel()
	key := testKey(t, 0xab)
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("start", "key", key, "box", fmt.Sprint(seal.New(key)))
	encoded, err := json.Marshal(map[string]any{"key": key, "nested": struct{ K seal.Key }{key}})
	if err != nil {
		t.Fatal(err)
	}
	shown := []string{logged.String(), string(encoded)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o"} {
		shown = append(shown, fmt.Sprintf(verb, key), fmt.Sprintf(verb, &key), fmt.Sprintf(verb, seal.New(key)),
			fmt.Sprintf(verb, struct{ K seal.Key }{key}))
	}
	for _, text := range shown {
		if !strings.Contains(text, "***") {
			t.Errorf("%s does not hide the key", text)
		}
		for _, leak := range []string{"171", "abab", "ABAB", "253", "\xab", "q6ur"} {
			if strings.Contains(text, leak) {
				t.Errorf("%q shows the key", text)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	key, err := seal.ParseKey(strings.Repeat("A", 43) + "=")
	if err != nil {
		f.Fatal(err)
	}
	box := seal.New(key)
	f.Add([]byte{}, "")
	f.Add(box.Seal([]byte("secret"), "a"), "a")
	f.Add(box.Seal(nil, ""), "b")
	f.Fuzz(func(t *testing.T, sealed []byte, context string) {
		plaintext, err := box.Open(sealed, context)
		if err != nil && plaintext != nil {
			t.Errorf("an error came with a text: %q, %v", plaintext, err)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add("")
	f.Add(strings.Repeat("A", 43) + "=")
	f.Add("====")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := seal.ParseKey(text); err == nil {
			trimmed := strings.TrimSpace(text)
			if len(trimmed) != 43 && len(trimmed) != 44 {
				t.Errorf("%q was accepted as a key", text)
			}
		}
	})
}
