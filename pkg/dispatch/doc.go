// Package dispatch is the behaviour of the dispatcher: it works deliveries that
// package fairqueue fetches, sends them through package courier, records each
// attempt, and hands the outcome to River.
//
// What it guarantees:
//
//   - An attempt's row is committed before River completes its job. After a crash
//     there can be a duplicate delivery, with the same webhook-id, never a lost
//     one, and what was recorded as delivered is not sent again.
//   - Every delivery that ends leaves an attempt row that says how.
//   - Retries have one owner: River, on the schedule that package courier
//     decides.
//   - Stopping lets running requests finish within the drain deadline; what is
//     left goes back to its lane and the attempt is not counted.
package dispatch
