// Package receiver is for those who receive webhooks from Fairhook, or from any
// other sender that signs as Standard Webhooks 1.0.0 describes
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md):
//
//	verifier, err := receiver.NewVerifier(os.Getenv("WEBHOOK_SECRET"))
//	...
//	rc, err := receiver.New(verifier, receiver.NewMemory(100_000))
//	...
//	http.Handle("/hooks", rc.Handle(func(ctx context.Context, m *receiver.Message) error {
//		return save(ctx, m.Body)
//	}))
//
// What it guarantees:
//
//   - A handler sees only messages whose id, timestamp and body were signed with one
//     of the keys, and signed within the tolerance of now. HMAC signatures are
//     compared in constant time.
//   - Bodies are read once, up to a bound, and handlers get the bytes that were
//     verified.
//   - A message that was handled is not handled again, for as long as the [Dedup]
//     remembers it, whether it was repeated by its sender or by somebody who
//     recorded it. One whose handling failed, panicked or died is handled when it
//     comes again.
//   - Answers say nothing about why a message was refused: see [WithOnError].
//
// What it cannot: a handler that has done its work, and whose process dies before
// that is written down, is called again. What has to be done exactly once belongs
// in one transaction with the Dedup, or must bear repetition.
//
// [Verifier] alone is for those who do not use net/http.
//
// The package depends on the standard library alone.
package receiver
