package courier

import (
	"net/http"
	"strings"
	"time"
)

// MaxRetryAfter is the longest wait that a receiver can ask for; more is cut to
// it.
const MaxRetryAfter = time.Hour

// ParseRetryAfter reads a Retry-After header (RFC 9110, section 10.2.3): whole
// seconds, or an HTTP date, which is compared with now. The wait is more than 0
// and at most MaxRetryAfter. A wait of 0, a moment that has passed, and anything
// that is neither form count as no header.
func ParseRetryAfter(header string, now time.Time) (time.Duration, bool) {
	header = strings.Trim(header, " \t")
	if header == "" {
		return 0, false
	}
	if strings.Trim(header, "0123456789") == "" {
		return parseDelaySeconds(header)
	}
	date, err := http.ParseTime(header)
	if err != nil {
		return 0, false
	}
	wait := min(date.Sub(now), MaxRetryAfter)
	return max(wait, 0), wait > 0
}

// parseDelaySeconds reads digits, any number of them.
func parseDelaySeconds(digits string) (time.Duration, bool) {
	var wait time.Duration
	for _, digit := range []byte(digits) {
		wait = min(wait*10+time.Duration(digit-'0')*time.Second, MaxRetryAfter)
	}
	return wait, wait > 0
}
