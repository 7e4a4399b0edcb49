// Command producer submits one event and prints Fairhook's answer:
//
//	FAIRHOOK_URL=http://localhost:8080 FAIRHOOK_KEY=... \
//	  go run ./docs/examples/go/producer TENANT TYPE PAYLOAD [IDEMPOTENCY_KEY]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) < 4 {
		return errors.New("usage: producer TENANT TYPE PAYLOAD [IDEMPOTENCY_KEY]")
	}
	event := client.Event{Tenant: os.Args[1], Type: os.Args[2], Payload: json.RawMessage(os.Args[3])}
	if len(os.Args) > 4 {
		// Kept with the event, it allows to submit it again after a crash.
		event.IdempotencyKey = os.Args[4]
	}
	// A Client is made once, and keeps connections.
	c, err := client.New(os.Getenv("FAIRHOOK_URL"), os.Getenv("FAIRHOOK_KEY"))
	if err != nil {
		return err
	}
	// It tries again by itself what may pass; the context bounds all of it.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	accepted, err := c.Submit(ctx, event)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(accepted)
}
