// Package limit decides how much is accepted. It has four limits, which know
// nothing of each other:
//
//   - Limiter: rates that hold over all processes together. The token buckets are
//     in the database; each process takes tokens out in leases, for all of its
//     buckets in one round trip, and hands them out from memory. However many
//     processes there are, over any 10 s at most 5 % more than the rate (or one
//     token, where that is more) is admitted, and at least 90 % of it where that
//     much is asked for.
//   - Backlog: how many deliveries may wait for a webhook, by an estimate that no
//     request waits for.
//   - Adaptive: how much this process takes while the database is slow
//     (additive increase, multiplicative decrease).
//   - Health: how much this process accepts for a webhook while its deliveries
//     fail, by the same rule.
//
// What they limit, and how a refusal is answered, is the caller's.
package limit
