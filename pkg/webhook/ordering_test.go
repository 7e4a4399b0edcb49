package webhook

import (
	"strings"
	"testing"
)

func TestCheckOrdering(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ordering Ordering
		skip     *int
		want     string // the pointer of the one fault
	}{
		"NoOrderIsAllowed":                    {ordering: OrderingNone},
		"StrictOrderIsAllowed":                {ordering: OrderingStrict},
		"OrderByKeyThatSkipsIsAllowed":        {ordering: OrderingKey, skip: new(MaxSkipAfter)},
		"AnUnknownOrderIsRefused":             {ordering: "fifo", want: "/ordering"},
		"AnEmptyOrderIsRefused":               {ordering: "", want: "/ordering"},
		"SkippingWithoutAnOrderIsRefused":     {ordering: OrderingNone, skip: new(1), want: "/ordering_skip_after"},
		"SkippingBeforeAnyAttemptIsRefused":   {ordering: OrderingStrict, skip: new(0), want: "/ordering_skip_after"},
		"SkippingAfterFarTooManyIsRefused":    {ordering: OrderingKey, skip: new(MaxSkipAfter + 1), want: "/ordering_skip_after"},
		"AnUnknownOrderIsTheOnlyFaultOfThose": {ordering: "fifo", skip: new(0), want: "/ordering"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := valid()
			w.Ordering, w.OrderingSkipAfter = c.ordering, c.skip
			faults := w.Check()
			if c.want == "" && len(faults) == 0 || len(faults) == 1 && faults[0].Pointer == c.want {
				return
			}
			t.Errorf("faults %v, want one at %q", faults, c.want)
		})
	}
}

func TestCheckOrderingKey(t *testing.T) {
	t.Parallel()
	for key, good := range map[string]bool{
		"order-4711": true, "kunde é 1": true, strings.Repeat("k", MaxOrderingKeyLength): true,
		"": false, strings.Repeat("k", MaxOrderingKeyLength+1): false, "a\nb": false, "\xff": false,
	} {
		if fault := CheckOrderingKey(key); (fault == "") != good {
			t.Errorf("%.20q: %q", key, fault)
		}
	}
}
