package webhook

// Ordering is which deliveries of a webhook wait for each other: each until the one
// before it has ended, in the order in which their events were accepted.
type Ordering string

// The closed set of orderings.
const (
	OrderingNone   Ordering = "none"
	OrderingStrict Ordering = "strict" // all of them: one at a time
	OrderingKey    Ordering = "key"    // those whose events have the same ordering key
)

// Ordered reports whether there is an order to keep.
func (o Ordering) Ordered() bool { return o == OrderingStrict || o == OrderingKey }

// MaxOrderingKeyLength is the most bytes that an event's ordering key can have.
const MaxOrderingKeyLength = 256

// CheckOrderingKey returns what is wrong with an event's ordering key, or an empty
// string.
func CheckOrderingKey(key string) string { return checkText(key, MaxOrderingKeyLength) }

// checkOrdering is the part of Check that is about ordering.
func (w *Webhook) checkOrdering(fault func(pointer, detail string), within func(pointer string, value, low, high int)) {
	switch w.Ordering {
	case OrderingNone, OrderingStrict, OrderingKey:
	default:
		fault("/ordering", `must be "none", "strict" or "key"`)
		return
	}
	if w.OrderingSkipAfter == nil {
		return
	}
	within("/ordering_skip_after", *w.OrderingSkipAfter, 1, MaxSkipAfter)
	if !w.Ordering.Ordered() {
		fault("/ordering_skip_after", "needs an ordering, in which deliveries wait for each other")
	}
}
