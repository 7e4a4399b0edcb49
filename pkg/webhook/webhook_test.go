package webhook

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

func valid() *Webhook {
	return &Webhook{
		Tenant: "acme", URL: "https://example.com/", EventTypes: []string{"*"}, State: StateActive,
		TimeoutSeconds: DefaultTimeoutSeconds, MaxInFlight: DefaultMaxInFlight,
		RetrySchedule: DefaultRetrySchedule(), MaxAgeSeconds: DefaultMaxAgeSeconds, MaxBacklog: DefaultMaxBacklog, Weight: DefaultWeight,
		Signatures: []Scheme{SchemeStandard}, Ordering: OrderingNone,
	}
}

func TestMatchesType(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern, eventType string
		want               bool
	}{
		{"*", "order.paid", true},
		{"order.paid", "order.paid", true},
		{"order.paid", "order.paid.twice", false},
		{"order.paid", "order", false},
		{"order.*", "order.paid", true},
		{"order.*", "order.item.added", true},
		{"order.*", "order", false},
		{"order.*", "orders.paid", false},
		{"order.*", "order.", true}, // not a type, and refused before it gets here
		{"order*", "orders", false}, // not a pattern, and refused before it gets here
		{"Order.*", "order.paid", false},
	} {
		if got := MatchesType(tt.pattern, tt.eventType); got != tt.want {
			t.Errorf("MatchesType(%q, %q) = %v", tt.pattern, tt.eventType, got)
		}
	}
}

func TestSubscribesToAnyOfItsTypes(t *testing.T) {
	t.Parallel()
	w := valid()
	w.EventTypes = []string{"invoice.paid", "order.*"}
	for eventType, want := range map[string]bool{"invoice.paid": true, "order.x": true, "invoice.sent": false} {
		if w.Subscribes(eventType) != want {
			t.Errorf("Subscribes(%q) is not %v", eventType, want)
		}
	}
}

func TestCheckEventType(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"a", "order.paid", "user_account.re-opened", "A.1", strings.Repeat("a", MaxEventTypeLength)} {
		if fault := CheckEventType(good); fault != "" {
			t.Errorf("%q is refused: %s", good, fault)
		}
	}
	for _, bad := range []string{"", ".", "a.", ".a", "a..b", "a b", "a/b", "é", "a\x00", "*", "a.*", strings.Repeat("a", MaxEventTypeLength+1), "\xff"} {
		if CheckEventType(bad) == "" {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestCheckNamesEveryFaultAtOnce(t *testing.T) {
	t.Parallel()
	if faults := valid().Check(); len(faults) != 0 {
		t.Fatalf("a valid webhook has faults: %v", faults)
	}
	w := valid()
	w.Tenant = "a\nb"
	w.Description = "\x00"
	w.EventTypes = []string{"*", "no good"}
	w.Headers = secretly(map[string]string{"Webhook-Id": "1", "bad name": "x", "X-Ok": "fine", "X-Bad": "a\nb", "Host": "x"})
	w.TimeoutSeconds = 0
	w.MaxInFlight = MaxMaxInFlight + 1
	w.RetrySchedule = []int{1, 0, MaxRetrySeconds + 1}
	w.MaxAgeSeconds = -1
	none := 0.0
	w.AcceptPerSecond = &none
	tooMany := MaxBurst + 1
	w.RatePerSecond, w.Burst, w.Weight = &none, &tooMany, MaxWeight+1
	w.MaxBacklog = 0
	w.AllowedCIDRs = []string{"192.0.2.0/24", "192.0.2.1/24", "nowhere"}
	var got []string
	for _, fault := range w.Check() {
		got = append(got, fault.Pointer)
	}
	want := []string{
		"/accept_per_second", "/allowed_cidrs/1", "/allowed_cidrs/2", "/burst", "/description", "/event_types/1", "/headers/Host", "/headers/Webhook-Id", "/headers/X-Bad", "/headers/bad name",
		"/max_age_seconds", "/max_backlog", "/max_in_flight", "/rate_per_second", "/retry_schedule_seconds/1", "/retry_schedule_seconds/2", "/tenant", "/timeout_seconds", "/weight",
	}
	if !slices.Equal(got, want) {
		t.Errorf("faults at\n%v, want\n%v", got, want)
	}
}

func TestABurstNeedsARate(t *testing.T) {
	t.Parallel()
	w, burst, rate := valid(), 5, 2.5
	w.Burst = &burst
	if faults := w.Check(); len(faults) != 1 || faults[0].Pointer != "/burst" {
		t.Errorf("faults %v, want one about /burst", faults)
	}
	w.RatePerSecond = &rate
	if faults := w.Check(); len(faults) != 0 {
		t.Errorf("faults %v, want none with a rate", faults)
	}
}

func TestCheckBoundsItsLists(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Webhook){
		"/event_types":            func(w *Webhook) { w.EventTypes = nil },
		"/headers":                func(w *Webhook) { w.Headers = manyHeaders(MaxHeaders + 1) },
		"/retry_schedule_seconds": func(w *Webhook) { w.RetrySchedule = slices.Repeat([]int{1}, MaxRetries+1) },
	} {
		w := valid()
		change(w)
		if faults := w.Check(); len(faults) != 1 || faults[0].Pointer != name {
			t.Errorf("faults %v, want one at %s", faults, name)
		}
	}
	w := valid()
	w.Headers = secretly(map[string]string{strings.Repeat("x", MaxHeaderName+1): "v"})
	if faults := w.Check(); len(faults) != 1 || faults[0].Pointer != "/headers" {
		t.Errorf("faults of a long name %.200v, want one at /headers", faults)
	}
	w.Headers = secretly(map[string]string{strings.Repeat("x", MaxHeaderName): "v"})
	if faults := w.Check(); len(faults) != 0 {
		t.Errorf("the longest name is refused: %v", faults)
	}
	w.Headers, w.RetrySchedule = manyHeaders(MaxHeaders), []int{}
	if faults := w.Check(); len(faults) != 0 {
		t.Errorf("the bounds themselves are refused: %v", faults)
	}
}

func manyHeaders(n int) map[string]Secret {
	headers := map[string]Secret{}
	for i := range n {
		headers[fmt.Sprintf("X-%d", i)] = NewSecret("v")
	}
	return headers
}

func secretly(headers map[string]string) map[string]Secret {
	secret := map[string]Secret{}
	for name, value := range headers {
		secret[name] = NewSecret(value)
	}
	return secret
}

func TestReservedHeadersAreKnownInAnySpelling(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"webhook-id", "WEBHOOK-SIGNATURE", "fairhook-attempt", "content-LENGTH", "Transfer-Encoding", "connection", "proxy-authorization", "te", "User-agent", "http2-settings"} {
		if !ReservedHeader(name) {
			t.Errorf("%s may be chosen", name)
		}
	}
	for _, name := range []string{"Authorization", "X-Api-Key", "Webhook", "Accept", "X-Hub-Signature-256", "Stripe-Signature"} {
		if ReservedHeader(name) {
			t.Errorf("%s may not be chosen", name)
		}
	}
}

func TestCheckMetadata(t *testing.T) {
	t.Parallel()
	if faults := CheckMetadata("/metadata", map[string]string{"k": "", "order id": "42"}); len(faults) != 0 {
		t.Errorf("refused: %v", faults)
	}
	faults := CheckMetadata("/metadata", map[string]string{"a/b~": "x\x00"})
	if len(faults) != 1 || faults[0].Pointer != "/metadata/a~1b~0" {
		t.Errorf("faults %v, want one at the escaped pointer", faults)
	}
	many := map[string]string{}
	for i := range MaxMetadataKeys + 1 {
		many[fmt.Sprint(i)] = "\x00" // not told one by one
	}
	if faults := CheckMetadata("/metadata", many); len(faults) != 1 || faults[0].Pointer != "/metadata" {
		t.Errorf("faults %v", faults)
	}
}

func TestStatusTerminal(t *testing.T) {
	t.Parallel()
	for status, want := range map[Status]bool{
		StatusPending: false, StatusDelivering: false, StatusRetrying: false, StatusParked: false,
		StatusDelivered: true, StatusExhausted: true, StatusCancelled: true, StatusDropped: true,
	} {
		if status.Terminal() != want {
			t.Errorf("%s: terminal is not %v", status, want)
		}
	}
}

func TestReasonsAreDistinctMetricLabels(t *testing.T) {
	t.Parallel()
	seen := map[Reason]bool{}
	for _, reason := range Reasons() {
		if seen[reason] || strings.Trim(string(reason), "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("reason %q", reason)
		}
		seen[reason] = true
	}
}

func TestSecretNeverPrints(t *testing.T) {
	t.Parallel()
	s := NewSecret("whsec_abc")
	hidden := struct{ s Secret }{s}
	encoded, err := json.Marshal(map[string]any{"s": s, "p": &s, "m": map[string]Secret{"k": s}})
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("said", "s", s, "h", hidden)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("said", "s", s, "p", &s, "h", hidden)
	for _, verb := range "vsqdxXtbcoOUeEfFgGpT" {
		for _, flags := range []string{"", "+", "#", " ", "010"} {
			fmt.Fprintf(&logged, "%"+flags+string(verb), s)
			fmt.Fprintf(&logged, "%"+flags+string(verb), hidden)
			fmt.Fprintf(&logged, "%"+flags+string(verb), []Secret{s})
		}
	}
	if hexed := hex.EncodeToString([]byte("abc")); strings.Contains(strings.ToLower(logged.String()), hexed) {
		t.Errorf("printed in hexadecimal: %s", logged.String())
	}
	for _, text := range []string{logged.String(), fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q", s, s, s, s, s), fmt.Sprint(&s), string(encoded)} {
		if strings.Contains(text, "abc") {
			t.Errorf("printed as %s", text)
		}
	}
	if s.Reveal() != "whsec_abc" {
		t.Error("cannot be revealed")
	}
}

func TestErrorCode(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("load webhook: %w", Errorf(CodeNotFound, "no webhook %d", 1))
	if ErrorCode(err) != CodeNotFound || ErrorCode(fmt.Errorf("other")) != "" || ErrorCode(nil) != "" {
		t.Errorf("codes %q, %q, %q", ErrorCode(err), ErrorCode(fmt.Errorf("other")), ErrorCode(nil))
	}
	withField := &Error{Code: CodeInvalid, Message: "bad", Fields: []FieldError{{Pointer: "/url", Detail: "must be https"}}}
	if got := withField.Error(); got != "bad (/url: must be https)" {
		t.Errorf("got %q", got)
	}
}
