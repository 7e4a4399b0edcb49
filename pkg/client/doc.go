// Package client is the Go SDK of Fairhook: submit events, manage webhooks, and
// read back what became of an event.
//
//	c, err := client.New("https://hooks.example.com", apiKey)
//	...
//	accepted, err := c.Submit(ctx, client.Event{
//		Tenant:  "acme",
//		Type:    "invoice.paid",
//		Payload: json.RawMessage(`{"invoice":"in_123","amount":4200}`),
//	})
//
// What it guarantees:
//
//   - When Submit returns no error, Fairhook has committed the event: it will be
//     delivered at least once, or its final outcome recorded.
//   - The payload's bytes reach the receivers as they were given: they are never
//     decoded and encoded again.
//   - A submission that is tried again cannot become a second event: every
//     submission carries an Idempotency-Key, the same one over all its tries.
//   - Only what is safe to repeat is repeated. See [WithRetryMax] for the rules.
//   - An answer that is not a success is an [*Error]; answers may have fields
//     this version does not know.
//   - It logs nothing, and never shows the API key.
//
// What it leaves to its callers: a deadline for the whole call (the context's),
// and what to do with an event that could not be submitted. To try such an event
// again later without the risk of doubling it, choose its idempotency key
// ([NewIdempotencyKey]) and keep it with the event.
//
// Package receiver, in the same module, is for those who receive what Fairhook sends.
//
// The module depends on nothing of Fairhook's server.
package client
