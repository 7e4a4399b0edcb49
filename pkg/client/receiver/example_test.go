package receiver_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"

	"github.com/fairhook/fairhook/pkg/client/receiver"
)

func ExampleReceiver_Handle() {
	secret := "whsec_" + "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=" // of the webhook
	verifier, err := receiver.NewVerifier(secret)
	if err != nil {
		panic(err)
	}
	rc, err := receiver.New(verifier, receiver.NewMemory(100_000))
	if err != nil {
		panic(err)
	}
	hook := rc.Handle(func(_ context.Context, m *receiver.Message) error {
		fmt.Println("handled", m.ID, string(m.Body))
		return nil
	})

	// What a sender does: twice, as if the first answer had been lost.
	now := time.Now()
	for range 2 {
		r := httptest.NewRequest(http.MethodPost, "/hooks", strings.NewReader(`{"order":4711}`))
		r.Header.Set(receiver.HeaderID, "msg_1")
		r.Header.Set(receiver.HeaderTimestamp, strconv.FormatInt(now.Unix(), 10))
		r.Header.Set(receiver.HeaderSignature, sign(testKey, "msg_1", now, []byte(`{"order":4711}`)))
		w := httptest.NewRecorder()
		hook.ServeHTTP(w, r)
		fmt.Println("answered", w.Code)
	}
	// Output:
	// handled msg_1 {"order":4711}
	// answered 204
	// answered 204
}
