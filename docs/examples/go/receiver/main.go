// Command receiver receives webhooks: it verifies them and handles each once.
//
//	WEBHOOK_SECRET=whsec_... PORT=3000 go run ./docs/examples/go/receiver
//
// While a secret is being rotated WEBHOOK_SECRET has both, with a space between. A
// public key, "whpk_...", does as well.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/fairhook/fairhook/pkg/client/receiver"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	verifier, err := receiver.NewVerifier(strings.Fields(os.Getenv("WEBHOOK_SECRET"))...)
	if err != nil {
		return err
	}
	// Several copies of a receiver need a Dedup that they share: see docs/receiving.md.
	rc, err := receiver.New(verifier, receiver.NewMemory(100_000),
		receiver.WithOnError(func(_ *http.Request, err error) { slog.Warn("not handled", "error", err) }))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "3000"))
	if err != nil {
		return err
	}
	fmt.Println("listening on http://" + listener.Addr().String())
	server := &http.Server{Handler: rc.Handle(handle), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second}
	return server.Serve(listener)
}

// handle does the work for one message. If it fails, the sender comes again.
func handle(_ context.Context, m *receiver.Message) error {
	var data any
	if err := json.Unmarshal(m.Body, &data); err != nil {
		return fmt.Errorf("read the payload: %w", err)
	}
	encoded, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("show the payload: %w", err)
	}
	fmt.Println("handled", m.ID, m.Type, string(encoded))
	return nil
}
