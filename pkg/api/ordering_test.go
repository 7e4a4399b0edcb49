package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestWebhookOrdering(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("IsNoneUnlessItIsAskedFor", func(t *testing.T) {
		t.Parallel()
		if w := create(t, b, `{"tenant":"acme","url":"https://example.com/"}`); w.Ordering != webhook.OrderingNone || w.OrderingSkipAfter != nil {
			t.Errorf("%s, skip after %v", w.Ordering, w.OrderingSkipAfter)
		}
	})

	t.Run("IsCreatedChangedAndPutBack", func(t *testing.T) {
		t.Parallel()
		w := create(t, b, `{"tenant":"acme","url":"https://example.com/","ordering":"key","ordering_skip_after":3}`)
		if w.Ordering != webhook.OrderingKey || *w.OrderingSkipAfter != 3 {
			t.Fatalf("created as %s, skip after %v", w.Ordering, w.OrderingSkipAfter)
		}
		path := "/v1/webhooks/" + w.ID.String()
		w, _ = must[webhookAnswer](t, b, http.StatusOK, "PATCH", path, `{"ordering":"strict","ordering_skip_after":null}`)
		if w.Ordering != webhook.OrderingStrict || w.OrderingSkipAfter != nil {
			t.Errorf("changed to %s, skip after %v", w.Ordering, w.OrderingSkipAfter)
		}
		w, _ = must[webhookAnswer](t, b, http.StatusOK, "PATCH", path, `{"ordering":null}`)
		if w.Ordering != webhook.OrderingNone {
			t.Errorf("put back to %s", w.Ordering)
		}
	})

	t.Run("NamesWhatIsWrongWithIt", func(t *testing.T) {
		t.Parallel()
		for body, want := range map[string]string{
			`"ordering":"fifo"`:       "/ordering",
			`"ordering":""`:           "/ordering",
			`"ordering":1`:            "/ordering",
			`"ordering_skip_after":3`: "/ordering_skip_after",
			`"ordering":"strict","ordering_skip_after":0`:    "/ordering_skip_after",
			`"ordering":"strict","ordering_skip_after":1001`: "/ordering_skip_after",
			`"ordering":"strict","ordering_skip_after":"3"`:  "/ordering_skip_after",
		} {
			faults := refused(t, b, webhook.CodeInvalid, "POST", "/v1/webhooks", `{"tenant":"acme","url":"https://example.com/",`+body+`}`)
			if len(faults) != 1 || !strings.HasPrefix(faults[0], want+": ") {
				t.Errorf("faults of %s are %q, want one of %s", body, faults, want)
			}
		}
	})
}
