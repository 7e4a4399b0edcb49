package intake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// fault is what a proxy does to the next request that has the marker.
type fault int

const (
	faultNone    fault = iota
	loseAnswer         // the server executes it, and the connection breaks before the answer
	loseRequest        // the connection breaks before the server has it
	delayRequest       // the connection breaks, and the server gets it on release
	loseServer         // as loseRequest, and no connection works afterwards
)

// marker is in the payload of the events whose requests a proxy acts on.
const marker = "the-marked-event"

func marked(i *Item) { i.Payload = []byte(marker) }

// proxy stands between a pool and its server.
type proxy struct {
	t        *testing.T
	listener net.Listener
	target   string
	// executed is closed when the server has executed a delayed request.
	executed chan struct{}
	release  chan struct{}

	mu    sync.Mutex
	fault fault
	on    []byte // what the request has; nil: marker
	dead  bool
	conns []net.Conn
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, listener: listener, target: target, executed: make(chan struct{}), release: make(chan struct{})}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			if !p.adopt(client, server) {
				continue
			}
			answers := make(chan fault, 1)
			running.Go(func() { p.requests(client, server, answers) })
			running.Go(func() { p.answers(client, server, answers) })
		}
	})
	t.Cleanup(func() {
		p.kill()
		running.Wait()
	})
	return p
}

func (p *proxy) adopt(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		for _, c := range conns {
			c.Close()
		}
		return false
	}
	p.conns = append(p.conns, conns...)
	return true
}

func (p *proxy) kill() {
	p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	for _, c := range p.conns {
		c.Close()
	}
}

func (p *proxy) arm(f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// armCommit has the fault happen to the next COMMIT that is a request by itself.
func (p *proxy) armCommit(f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.on = f, []byte("commit\x00")
}

// strike returns the fault to commit on a request, once.
func (p *proxy) strike(request []byte) fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	on := p.on
	if on == nil {
		on = []byte(marker)
	}
	if p.fault == faultNone || !bytes.Contains(request, on) {
		return faultNone
	}
	f := p.fault
	p.fault = faultNone
	return f
}

func (p *proxy) requests(client, server net.Conn, answers chan<- fault) {
	buf := make([]byte, 1<<20)
	for {
		n, err := client.Read(buf)
		if err != nil {
			server.Close()
			return
		}
		switch f := p.strike(buf[:n]); f {
		case faultNone:
		case loseAnswer:
			answers <- f
		case loseRequest:
			client.Close()
			server.Close()
			return
		case delayRequest:
			answers <- f
			client.Close()
			select {
			case <-p.release:
			case <-p.t.Context().Done():
			}
			_, _ = server.Write(buf[:n])
			return
		case loseServer:
			p.kill()
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			client.Close()
			return
		}
	}
}

// ready is ReadyForQuery outside of a transaction: what a server says last.
var ready = []byte("Z\x00\x00\x00\x05I")

func (p *proxy) answers(client, server net.Conn, faults <-chan fault) {
	buf := make([]byte, 1<<20)
	var swallow fault
	for {
		n, err := server.Read(buf)
		if err != nil {
			client.Close()
			return
		}
		select {
		case swallow = <-faults:
		default:
		}
		switch {
		case swallow == faultNone:
			if _, err := client.Write(buf[:n]); err != nil {
				server.Close()
				return
			}
		case bytes.HasSuffix(buf[:n], ready):
			client.Close()
			server.Close()
			if swallow == delayRequest {
				close(p.executed)
			}
			return
		}
	}
}

// setupProxied is setup with a proxy between the intake and its database.
func setupProxied(t *testing.T) (*bundle, *proxy) {
	t.Helper()
	db := pgtest.New(t)
	direct := db.Pool.Config().ConnConfig
	p := newProxy(t, fmt.Sprintf("%s:%d", direct.Host, direct.Port))
	cfg, err := postgres.PoolConfig(db.URL, "intake", 4)
	if err != nil {
		t.Fatal(err)
	}
	addr := p.listener.Addr().(*net.TCPAddr)
	cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", uint16(addr.Port)
	cfg.ConnConfig.Fallbacks = nil
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	b := setupOn(t, pool, func(c *Config) { c.Committers = 1 })
	b.pool = db.Pool
	return b, p
}

func TestUnknownCommitOutcome(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{
		"EndsAsOneEventWhenTheAnswerIsLost":  loseAnswer,
		"EndsAsOneEventWhenTheRequestIsLost": loseRequest,
	} {
		for _, keyed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%sKeyed=%t", name, keyed), func(t *testing.T) {
				t.Parallel()
				b, p := setupProxied(t)
				items := []Item{item(marked), item(), item(bad)}
				if keyed {
					withKey("k", "body")(&items[0])
				}
				b.start()
				b.accepted(b.submit(item())) // the statements are prepared now
				p.arm(f)
				r := b.accepted(b.submit(items[0]))
				if r.Replayed {
					t.Errorf("receipt %+v says that another submission stored it", r)
				}
				b.accepted(b.submit(items[1]))
				b.refused(b.submit(items[2]), webhook.CodeInvalid)
				if e, j := b.events(), b.jobs(); e != 3 || j != 3 {
					t.Errorf("%d events, %d jobs, want 3 and 3", e, j)
				}
				if n := query[int](t, b.pool, `SELECT count(*) FROM fairhook.events WHERE id = $1`, r.ID); n != 1 {
					t.Errorf("%d events with the id of the receipt", n)
				}
				if n := count(t, b.metrics.unknownBatches); n != 1 {
					t.Errorf("%d unknown outcomes", n)
				}
				if n := count(t, b.metrics.accepted); n != 3 {
					t.Errorf("%d events counted as accepted", n)
				}
			})
		}
	}

	t.Run("EndsAsOneEventWhenTheRequestArrivesLate", func(t *testing.T) {
		t.Parallel()
		b, p := setupProxied(t)
		b.start()
		b.accepted(b.submit(item()))
		p.arm(delayRequest)
		keyed, plain := item(marked, withKey("k", "body")), item(marked)
		answers := []<-chan result{b.submit(keyed), b.submit(plain)}
		for _, answer := range answers {
			b.accepted(answer)
		}
		// The delivery is over before the first try reaches the server: it must not
		// come back.
		if _, err := b.pool.Exec(t.Context(), `DELETE FROM fairhook.river_job`); err != nil {
			t.Fatal(err)
		}
		close(p.release)
		select {
		case <-p.executed:
		case <-time.After(patience):
			t.Fatal("the server did not execute the late request")
		}
		if e, j := b.events(), b.jobs(); e != 3 || j != 0 {
			t.Errorf("%d events, %d jobs, want 3 and 0", e, j)
		}
	})

	t.Run("IsFoundOutForABatchWhoseBadEventFails", func(t *testing.T) {
		t.Parallel()
		b, p := setupProxied(t)
		p.arm(loseAnswer)
		good := []<-chan result{b.queue(item(marked)), b.queue(item())}
		refused := b.queue(item(bad))
		good = append(good, b.queue(item(withKey("k", "body"))))
		b.start()
		for _, answer := range good {
			b.accepted(answer)
		}
		b.refused(refused, webhook.CodeInvalid)
		if e, j := b.events(), b.jobs(); e != 3 || j != 3 {
			t.Errorf("%d events, %d jobs", e, j)
		}
	})

	t.Run("IsCalledUnknownWhenTheServerStaysAway", func(t *testing.T) {
		t.Parallel()
		b, p := setupProxied(t)
		b.limits.unknown = 300 * time.Millisecond
		b.start()
		b.accepted(b.submit(item()))
		p.arm(loseServer)
		if r := b.receive(b.submit(item(marked))); !errors.Is(r.err, ErrOutcomeUnknown) {
			t.Errorf("sent: got %+v", r)
		}
		if err := b.refused(b.submit(item()), webhook.CodeUnavailable); errors.Is(err, ErrOutcomeUnknown) {
			t.Error("not sent: the outcome is known")
		}
		if events, bytes := b.Depth(); events != 0 || bytes != 0 {
			t.Errorf("%d events, %d bytes left in the buffer", events, bytes)
		}
	})
}

func TestHungCommitDoesNotHoldUpTheQueue(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.Committers = 1 }).start()
	release := b.hold()
	sent := b.submit(item())
	b.eventually("the transaction waits", func() bool { return b.waitingCommits() == 1 })
	queued := b.queue(item())
	b.watchOnce(time.Now().Add(b.limits.stall - time.Second))
	select {
	case r := <-queued:
		t.Fatalf("refused too soon: %+v", r)
	default:
	}
	b.watchOnce(time.Now().Add(b.limits.stall + time.Second))
	if err := b.refused(queued, webhook.CodeUnavailable); errors.Is(err, ErrOutcomeUnknown) {
		t.Error("not sent: the outcome is known")
	}
	release()
	b.accepted(sent)
	b.accepted(b.submit(item()))
	if n := b.events(); n != 2 {
		t.Errorf("%d events", n)
	}
}

func TestDatabaseOutage(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	pool, err := postgres.Open(t.Context(), server.URL("fairhook"), "intake", 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	b := setupOn(t, pool).start()

	// Producers that go on through the crash, each with one event at a time.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var (
		producers sync.WaitGroup
		mu        sync.Mutex
		acked     []webhook.ID
		slowest   time.Duration
		surprises []error
	)
	for range 20 {
		producers.Go(func() {
			for ctx.Err() == nil {
				begun := time.Now()
				r, err := b.Submit(context.WithoutCancel(ctx), item())
				took := time.Since(begun)
				mu.Lock()
				switch {
				case err == nil:
					acked = append(acked, r.ID)
				case errors.Is(err, ErrOutcomeUnknown):
				case webhook.ErrorCode(err) != webhook.CodeUnavailable:
					surprises = append(surprises, err)
				default:
					slowest = max(slowest, took)
				}
				mu.Unlock()
			}
		})
	}
	enough := func(more int) func() bool {
		mu.Lock()
		from := len(acked)
		mu.Unlock()
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(acked) >= from+more
		}
	}
	b.eventually("events are accepted", enough(200))
	server.Kill()
	away := count(t, b.metrics.refused.WithLabelValues(reasonAway))
	b.eventually("events are refused", func() bool { return count(t, b.metrics.refused.WithLabelValues(reasonAway)) > away+100 })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	b.eventually("events are accepted again", enough(1))
	if took := time.Since(back); took > 2*time.Second {
		t.Errorf("accepted again %s after the return", took)
	}
	b.eventually("many events are accepted again", enough(200))
	cancel()
	producers.Wait()

	if slowest > 2*time.Second { // a second, and what a busy machine adds
		t.Errorf("one refusal took %s", slowest)
	}
	for _, err := range surprises {
		t.Errorf("refused with %v", err)
	}
	lost := query[int](t, pool, `
		SELECT count(*) FROM unnest($1::uuid[]) AS a (id) WHERE NOT EXISTS (SELECT FROM fairhook.events e WHERE e.id = a.id)`, acked)
	if lost != 0 {
		t.Errorf("%d of %d acknowledged events are not stored", lost, len(acked))
	}
	if e, j := b.events(), b.jobs(); e != j {
		t.Errorf("%d events, %d jobs", e, j)
	}
	// What got no receipt may be stored only where the outcome was unknown.
	if extra, unknown := b.events()-len(acked), count(t, b.metrics.refused.WithLabelValues(reasonUnknown)); extra > unknown {
		t.Errorf("%d events are stored that were refused; the outcome of %d was unknown", extra, unknown)
	}
	var buffered int
	b.eventually("the buffer is empty", func() bool { buffered, _ = b.Depth(); return buffered == 0 })
}
