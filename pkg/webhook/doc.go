// Package webhook holds Fairhook's nouns and the rules that belong to them:
// ids, webhooks, events, deliveries, attempts, the closed enums for their
// statuses and reasons, and the one error type that crosses package borders.
//
// It imports nothing else of Fairhook's, talks to no database and no network,
// and every function in it is pure.
package webhook
