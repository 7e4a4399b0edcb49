package seal_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/seal"
)

func TestBoxOfSeveralKeys(t *testing.T) {
	t.Parallel()
	first, second := testKey(t, 1), testKey(t, 2)
	before, after := seal.New(first), seal.New(second)
	both := seal.New(second, first)

	t.Run("SealsUnderTheCurrentKeyAlone", func(t *testing.T) {
		t.Parallel()
		sealed := both.Seal([]byte("secret"), "a")
		if got, err := after.Open(sealed, "a"); err != nil || string(got) != "secret" {
			t.Errorf("the current key opens it as %q, %v", got, err)
		}
		if _, err := before.Open(sealed, "a"); !errors.Is(err, seal.ErrWrongKey) {
			t.Errorf("the old key: %v, want ErrWrongKey", err)
		}
		if both.Current() != after.Current() || both.Current() == before.Current() {
			t.Error("its prefix is not that of the current key")
		}
		if !bytes.HasPrefix(sealed, prefixOf(both)) {
			t.Error("what it seals does not begin with its prefix")
		}
	})

	t.Run("OpensWhatWasSealedUnderAnyOfThem", func(t *testing.T) {
		t.Parallel()
		for _, box := range []*seal.Box{before, after} {
			if got, err := both.Open(box.Seal([]byte("secret"), "a"), "a"); err != nil || string(got) != "secret" {
				t.Errorf("opened %q, %v", got, err)
			}
			if !both.Holds(box.Current()) {
				t.Error("it does not know that it holds one of its keys")
			}
		}
		if _, err := both.Open(before.Seal([]byte("secret"), "a"), "b"); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("another context: %v, want ErrCorrupt", err)
		}
	})

	t.Run("TellsAKeyThatItDoesNotHave", func(t *testing.T) {
		t.Parallel()
		stranger := seal.New(testKey(t, 3))
		if _, err := both.Open(stranger.Seal([]byte("secret"), "a"), "a"); !errors.Is(err, seal.ErrWrongKey) {
			t.Errorf("got %v, want ErrWrongKey", err)
		}
		if both.Holds(stranger.Current()) {
			t.Error("it claims to hold it")
		}
	})
}

func prefixOf(box *seal.Box) []byte {
	prefix := box.Current()
	return prefix[:]
}

func TestParseOldKeys(t *testing.T) {
	t.Parallel()
	text := func(fill byte) string {
		return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, seal.KeySize))
	}

	t.Run("ReadsAListWithSpaces", func(t *testing.T) {
		t.Parallel()
		keys, err := seal.ParseOldKeys(" " + text(1) + " , " + text(2) + "\n")
		if err != nil || len(keys) != 2 || keys[0] != testKey(t, 1) || keys[1] != testKey(t, 2) {
			t.Errorf("%d keys, %v", len(keys), err)
		}
	})

	t.Run("TakesNoneForNone", func(t *testing.T) {
		t.Parallel()
		for _, none := range []string{"", "  "} {
			if keys, err := seal.ParseOldKeys(none); err != nil || len(keys) != 0 {
				t.Errorf("%q: %d keys, %v", none, len(keys), err)
			}
		}
	})

	for name, bad := range map[string]string{
		"AnEmptyOne":   text(1) + ",",
		"AShortOne":    text(1) + ",c2hvcnQ=",
		"MoreThanFit":  strings.TrimSuffix(strings.Repeat(text(1)+",", seal.MaxOldKeys+1), ","),
		"OtherDivides": text(1) + ";" + text(2),
	} {
		t.Run("Refuses"+name, func(t *testing.T) {
			t.Parallel()
			_, err := seal.ParseOldKeys(bad)
			if err == nil {
				t.Fatal("was accepted")
			}
			if strings.Contains(err.Error(), text(1)[:8]) || strings.Contains(err.Error(), "c2hvcnQ") {
				t.Errorf("the error repeats a key: %v", err)
			}
		})
	}
}
