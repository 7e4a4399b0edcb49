package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

// Defaults of a Client.
const (
	DefaultRetryMax       = 5
	DefaultRetryWaitMin   = 250 * time.Millisecond
	DefaultRetryWaitMax   = 30 * time.Second
	DefaultRequestTimeout = 35 * time.Second // a little longer than the server's own limit
)

// maxAnswer bounds how much of an answer is read, in bytes.
const maxAnswer = 64 << 20

// idleConnections is how many connections to Fairhook are kept between
// requests: net/http's two would have a busy producer reconnect all the time.
const idleConnections = 64

// Client talks to one Fairhook. It is safe for use by several goroutines at a
// time, and meant to be made once: it keeps connections.
type Client struct {
	base           *url.URL
	authorize      func(*http.Request)                        // holds the key, so that no printing of a Client can show it
	sign           func(req *http.Request, body []byte) error // of submissions; nil: not
	http           *http.Client
	userAgent      string
	requestTimeout time.Duration
	retries        retries
	fault          error // of an option
}

// Option changes a Client from its defaults.
type Option func(*Client)

// WithHTTPClient has requests made through the given client: for a proxy, a
// private certificate authority, or tracing. It is copied; redirects are not
// followed unless its CheckRedirect says so, since an API answers none, and
// [WithRequestTimeout] rules over its Timeout.
func WithHTTPClient(h *http.Client) Option {
	return func(c *Client) {
		copied := *h
		c.http = &copied
	}
}

// WithRequestTimeout bounds each try of a request, the reading of the answer
// included: default [DefaultRequestTimeout]; 0 is no bound but the context's.
func WithRequestTimeout(d time.Duration) Option {
	return func(c *Client) { c.requestTimeout = d }
}

// WithUserAgent puts a name, such as "billing/1.4", before the client's own in
// the User-Agent header.
func WithUserAgent(name string) Option {
	return func(c *Client) { c.userAgent = name + " " + c.userAgent }
}

// WithRetryMax sets how many times a request is tried again: default
// [DefaultRetryMax], 0 for never. Tried again are
//
//   - 429: Fairhook kept nothing of the request;
//   - a connection that could not be made, since nothing was sent;
//   - a broken connection, a timeout, 502, 503 and 504, when doing it twice is
//     as good as once: reads, pause, resume, delete, and submissions, by their
//     Idempotency-Key. Creating or updating a webhook is not;
//   - 409 to a submission, which means that the same key is being accepted
//     through another connection: its answer will be this one's.
//
// A Retry-After is honoured. One that is longer than [WithRetryWait] allows, or
// than the context's deadline, ends the call at once with the [*Error] that
// carries it, since waiting is then the caller's choice.
func WithRetryMax(n int) Option {
	return func(c *Client) { c.retries.max = n }
}

// WithRetryWait sets the first and the longest wait between tries: default
// [DefaultRetryWaitMin] and [DefaultRetryWaitMax]. In between the wait doubles,
// less up to a half at random.
func WithRetryWait(shortest, longest time.Duration) Option {
	return func(c *Client) { c.retries.waitMin, c.retries.waitMax = shortest, longest }
}

// New makes a Client for the Fairhook at baseURL, such as
// "https://hooks.example.com" (a path is kept, for an ingest behind a prefix).
// It makes no request.
func New(baseURL, apiKey string, opts ...Option) (*Client, error) {
	base, err := parseBase(baseURL)
	if err != nil {
		return nil, err
	}
	if apiKey == "" || strings.ContainsFunc(apiKey, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("fairhook: the API key must be visible ASCII characters, and at least one")
	}
	c := &Client{
		base:           base,
		authorize:      func(req *http.Request) { req.Header.Set("Authorization", "Bearer "+apiKey) },
		http:           retryablehttp.NewClient().HTTPClient,
		userAgent:      "fairhook-go",
		requestTimeout: DefaultRequestTimeout,
		retries:        retries{max: DefaultRetryMax, waitMin: DefaultRetryWaitMin, waitMax: DefaultRetryWaitMax},
	}
	if transport, ok := c.http.Transport.(*http.Transport); ok {
		transport.MaxIdleConnsPerHost = idleConnections
	}
	for _, opt := range opts {
		opt(c)
	}
	if c.fault != nil {
		return nil, c.fault
	}
	if err := c.retries.check(); err != nil {
		return nil, err
	}
	if c.requestTimeout < 0 {
		return nil, fmt.Errorf("fairhook: the request timeout must not be negative: %s", c.requestTimeout)
	}
	c.http.Timeout = c.requestTimeout
	if c.http.CheckRedirect == nil {
		c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return c, nil
}

func parseBase(baseURL string) (*url.URL, error) {
	base, err := url.Parse(baseURL)
	if err != nil {
		// url.Parse's error repeats the URL, which may hold a password.
		return nil, errors.New("fairhook: the base URL is not a URL")
	}
	switch {
	case base.Scheme != "http" && base.Scheme != "https":
		return nil, errors.New("fairhook: the base URL must begin with http:// or https://")
	case base.Host == "":
		return nil, errors.New("fairhook: the base URL names no host")
	case base.User != nil || base.RawQuery != "" || base.Fragment != "":
		return nil, errors.New("fairhook: the base URL must not have user, query or fragment")
	}
	return base, nil
}

// String names the Fairhook this client talks to.
func (c *Client) String() string { return "fairhook at " + c.base.String() }

// call is one request of the API, before it is tried.
type call struct {
	method string
	path   string // from the base, parts already escaped
	query  url.Values
	header http.Header
	body   []byte
	// repeatable: doing it twice is as good as doing it once.
	repeatable bool
	// submission: a 409 means that an earlier try is still under way.
	submission bool
}

// answer is the last answer to a call.
type answer struct {
	status int
	header http.Header
	body   []byte
	// tries is how many requests were made.
	tries int
}

// do makes a call and decodes a success into into, unless that is nil. The
// error of any other answer is an *Error.
func (c *Client) do(ctx context.Context, call call, into any) (*answer, error) {
	got, err := c.send(ctx, call)
	if err != nil {
		return nil, fmt.Errorf("fairhook: %s %s: %w", call.method, call.path, err)
	}
	if got.status < 200 || got.status > 299 {
		return got, decodeError(got)
	}
	if into == nil {
		return got, nil
	}
	if err := json.Unmarshal(got.body, into); err != nil {
		return got, fmt.Errorf("fairhook: %s %s: read the answer: %w", call.method, call.path, err)
	}
	return got, nil
}

// send tries a call as often as its policy allows and returns the last answer,
// whatever its status, or the reason why there is none.
func (c *Client) send(ctx context.Context, call call) (*answer, error) {
	target := *c.base
	target.Path, target.RawPath = "", ""
	target.RawQuery = call.query.Encode()
	location := strings.TrimSuffix(c.base.EscapedPath(), "/") + call.path
	var err error
	if target.Path, err = url.PathUnescape(location); err != nil {
		return nil, err
	}
	target.RawPath = location

	var body any
	if len(call.body) > 0 { // an empty reader would be sent in chunks, without a length
		body = call.body
	}
	req, err := retryablehttp.NewRequestWithContext(ctx, call.method, target.String(), body)
	if err != nil {
		return nil, err
	}
	for name, values := range call.header {
		req.Header[name] = values
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	req.Header.Set("User-Agent", c.userAgent)
	c.authorize(req.Request)

	got := &answer{}
	policy := &policy{retries: c.retries, repeatable: call.repeatable, submission: call.submission}
	// Reading the answer inside the loop makes a broken answer a broken try.
	req.SetResponseHandler(func(resp *http.Response) (err error) {
		got.body, err = readAnswer(resp)
		return err
	})
	loop := retryablehttp.Client{
		HTTPClient:     c.http,
		Logger:         nil,
		RetryMax:       c.retries.max,
		RetryWaitMin:   c.retries.waitMin,
		RetryWaitMax:   c.retries.waitMax,
		CheckRetry:     policy.checkRetry,
		Backoff:        backoff,
		ErrorHandler:   retryablehttp.PassthroughErrorHandler,
		RequestLogHook: func(retryablehttp.Logger, *http.Request, int) { got.tries++ },
	}
	if c.sign != nil && call.submission {
		if err := c.sign(req.Request, call.body); err != nil {
			return nil, err
		}
		// A further try has a timestamp of its own: it may come much later.
		loop.PrepareRetry = func(req *http.Request) error { return c.sign(req, call.body) }
	}
	resp, err := loop.Do(req)
	if err != nil {
		if resp != nil {
			_ = resp.Body.Close()
		}
		return nil, policy.explain(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if policy.retrying { // the last try was one to repeat, so its answer is still unread
		if got.body, err = readAnswer(resp); err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
	}
	got.status, got.header = resp.StatusCode, resp.Header
	return got, nil
}

// errAnswerTooLarge is no fault of the connection: trying again would not help.
var errAnswerTooLarge = fmt.Errorf("the answer is longer than %d bytes", maxAnswer)

func readAnswer(resp *http.Response) ([]byte, error) {
	defer func() { _ = resp.Body.Close() }()
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, maxAnswer+1)); err != nil {
		return nil, err
	}
	if buf.Len() > maxAnswer {
		return nil, errAnswerTooLarge
	}
	return buf.Bytes(), nil
}

// page is one page of a list.
type page[T any] struct {
	Data       []T    `json:"data"`
	NextCursor string `json:"next_cursor"`
}

// checkID refuses what could not be an id, which would otherwise make another
// path than the one meant.
func checkID(id string) error {
	const form = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
	if len(id) != len(form) {
		return fmt.Errorf("fairhook: %q is not an id", id)
	}
	for i := range len(id) {
		if hyphen := form[i] == '-'; hyphen != (id[i] == '-') || !hyphen && !strings.ContainsRune("0123456789abcdefABCDEF", rune(id[i])) {
			return fmt.Errorf("fairhook: %q is not an id", id)
		}
	}
	return nil
}
