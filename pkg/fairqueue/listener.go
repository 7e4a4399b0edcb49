package fairqueue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// River's notification topics for new jobs and for what is asked of running ones.
const (
	topicInsert  = "river_insert"
	topicControl = "river_control"
	// topicLanes is ours: a lane whose gate or owner changed.
	topicLanes = "lanes"
)

// pingTimeout is how long the answer to a ping may take.
const pingTimeout = time.Second

// errNotConnected is returned where River uses a listener before Connect.
var errNotConnected = errors.New("listener is not connected")

// listener is River's notification connection. It takes the lanes out of a
// notification and puts them into the ring BEFORE River hears of it and wakes
// the producer, so that there is no moment at which one knows and the other
// does not. It also makes up a notification when the queue itself knows of work
// (a freed cap, a due time), since River offers no other way to wake a producer.
//
// It has its own direct connection: a pooler in transaction mode loses LISTEN.
type listener struct {
	q      *Queue
	schema string

	mu   sync.Mutex // guards conn, and every use of it
	conn *pgx.Conn
}

var _ riverdriver.Listener = (*listener)(nil)

// Connect opens the connection.
func (l *listener) Connect(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		return errors.New("listener is connected already")
	}
	cfg, err := pgx.ParseConfig(l.q.cfg.ListenURL)
	if err != nil {
		return fmt.Errorf("parse the listen database URL: %w", err)
	}
	cfg.RuntimeParams["application_name"] = "fairhook-listen"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connect the listener: %w", err)
	}
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{l.schema + "." + topicLanes}.Sanitize()); err != nil {
		_ = conn.Close(ctx) // it is of no use, and gone either way
		return fmt.Errorf("listen for lanes: %w", err)
	}
	l.conn = conn
	l.q.hears.Store(true)
	// Whatever was said while nobody listened is found by looking.
	l.q.Reset()
	return nil
}

// Close closes the connection; Connect may follow.
func (l *listener) Close(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return nil
	}
	err := l.conn.Close(ctx)
	l.conn = nil
	l.q.hears.Store(false)
	return err
}

// Listen subscribes to one of River's topics.
func (l *listener) Listen(ctx context.Context, topic string) error {
	err := l.exec(ctx, "LISTEN ", topic)
	// What was said before this moment is found by looking.
	signal(l.q.look)
	return err
}

// Unlisten ends a subscription.
func (l *listener) Unlisten(ctx context.Context, topic string) error {
	return l.exec(ctx, "UNLISTEN ", topic)
}

func (l *listener) exec(ctx context.Context, verb, topic string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return errNotConnected
	}
	_, err := l.conn.Exec(ctx, verb+pgx.Identifier{l.schema + "." + topic}.Sanitize())
	return err
}

// Ping asks whether the connection lives. River does so every 5 s: one whose peer has
// gone without a word is noticed by that alone, and until it is replaced discovery
// looks for itself.
func (l *listener) Ping(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return errNotConnected
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	err := l.conn.Ping(ctx)
	if err != nil {
		l.q.hears.Store(false)
	}
	return err
}

// Schema is the schema whose topics are heard.
func (l *listener) Schema() string { return l.schema }

// SetAfterConnectExec is for River's own tests.
func (l *listener) SetAfterConnectExec(string) {}

// WaitForNotification blocks until there is one, made up or real.
func (l *listener) WaitForNotification(ctx context.Context) (*riverdriver.Notification, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return nil, errNotConnected
	}
	waitCtx, cancel := context.WithCancel(ctx)
	kicked := make(chan bool, 1)
	go func() {
		select {
		case <-l.q.kick:
			kicked <- true
			cancel()
		case <-waitCtx.Done():
			kicked <- false
		}
	}()
	n, err := l.conn.WaitForNotification(waitCtx)
	cancel()
	if <-kicked {
		if err == nil {
			// Both at once: let River hear the real one, and keep the flag up.
			signal(l.q.kick)
			return l.translate(n.Channel, n.Payload), nil
		}
		if ctx.Err() == nil && errors.Is(err, context.Canceled) {
			return wakeUp(), nil
		}
		signal(l.q.kick)
	}
	if err != nil {
		if ctx.Err() == nil {
			l.q.hears.Store(false) // until River has connected anew
		}
		return nil, err
	}
	return l.translate(n.Channel, n.Payload), nil
}

// translate puts the lanes that a notification names into the ring, and makes it
// one that wakes our producer.
func (l *listener) translate(channel, payload string) *riverdriver.Notification {
	topic := strings.TrimPrefix(channel, l.schema+".")
	if topic == topicControl {
		return &riverdriver.Notification{Topic: topic, Payload: translateControl(payload)}
	}
	if topic == topicLanes {
		switch id, until, ok := parseLaneChange(payload); {
		case !ok:
		case until.IsZero():
			l.q.Changed(id)
		default:
			l.q.ring.gateClosed(id, until)
		}
		return wakeUp()
	}
	if topic != topicInsert {
		return &riverdriver.Notification{Topic: topic, Payload: payload}
	}
	var n notification
	// River's own notifications (its scheduler sends them when retries fall due)
	// name a job's queue, which is a lane.
	if json.Unmarshal([]byte(payload), &n) == nil {
		if id, ok := LaneWebhook(n.Queue); ok {
			l.q.ring.wake(id)
			return wakeUp()
		}
	}
	ids, ours := parseNotification(payload)
	if ours {
		for _, id := range ids {
			l.q.ring.wake(id)
		}
		if len(ids) == 0 {
			signal(l.q.look)
		}
	}
	return &riverdriver.Notification{Topic: topic, Payload: payload}
}

// parseLaneChange reads a notification about a lane: which, and until when a gate has
// closed; zero: it has changed otherwise.
func parseLaneChange(payload string) (id webhook.ID, until time.Time, ok bool) {
	name, at, closed := strings.Cut(payload, " ")
	id, err := webhook.ParseID(name)
	if err != nil || !closed {
		return id, time.Time{}, err == nil
	}
	micros, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return id, time.Time{}, true // one that must be asked about
	}
	return id, time.UnixMicro(micros), true
}

// translateControl makes a request to cancel a running delivery, which names the
// delivery's lane, one that our producer listens to: it works every lane.
func translateControl(payload string) string {
	var request map[string]json.RawMessage
	var queue string
	if json.Unmarshal([]byte(payload), &request) != nil || json.Unmarshal(request["queue"], &queue) != nil {
		return payload
	}
	if _, ok := LaneWebhook(queue); !ok {
		return payload
	}
	request["queue"] = json.RawMessage(`"` + ClientQueue + `"`)
	translated, err := json.Marshal(request)
	if err != nil {
		return payload
	}
	return string(translated)
}

// wakeUp is a notification that makes River's producer fetch.
func wakeUp() *riverdriver.Notification {
	return &riverdriver.Notification{Topic: topicInsert, Payload: `{"queue":"` + ClientQueue + `"}`}
}

// IsCancelRequested reports whether River was asked to cancel this job while it
// runs.
func IsCancelRequested(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), rivertype.ErrJobCancelledRemotely)
}
