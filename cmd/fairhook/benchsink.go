//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// sinkIdle is how long a sink keeps a connection on which nothing comes:
	// longer than any run of it, so that no request meets a closed one.
	sinkIdle = 10 * time.Minute
	// sinkLine bounds a line of a request's head, in bytes.
	sinkLine = 8 << 10
	// sinkBody bounds the body of a request, in bytes.
	sinkBody = 16 << 20

	answerTaken  = "HTTP/1.1 204 No Content\r\n\r\n"
	answerFailed = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
)

// arrival is a delivery as the sink saw it.
type arrival struct {
	id webhook.ID // of the event
	at time.Time
}

// sink is a receiver that verifies nothing, and remembers what came and when. It
// speaks HTTP/1.1 by itself, like load, and for the same reason.
type sink struct {
	url      string
	answer   string        // to every request
	wait     time.Duration // before it
	listener net.Listener
	// received is how many requests came, each counted before it is answered.
	received atomic.Int64
	released chan struct{} // closed: nobody waits any more
	release  func()        // closes it; may be called again
	ended    sync.WaitGroup

	mu       sync.Mutex // guards what follows
	arrivals []arrival
	conns    map[net.Conn]struct{} // nil once the sink is closed
}

// startSink starts a sink on a free port of one of this machine's own addresses:
// number tells sinks apart that should be different hosts to a dispatcher, where
// the system has more than one such address.
func startSink(number int, answer string, wait time.Duration) (*sink, error) {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:0", number))
	if err != nil {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return nil, fmt.Errorf("start a receiver: %w", err)
	}
	s := &sink{
		url: "http://" + listener.Addr().String() + "/", answer: answer, wait: wait,
		listener: listener, released: make(chan struct{}), conns: map[net.Conn]struct{}{},
	}
	s.release = sync.OnceFunc(func() { close(s.released) })
	s.ended.Go(s.accept)
	return s, nil
}

func (s *sink) accept() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as too many open files: what is open goes on
			time.Sleep(drainPoll)
			continue
		}
		s.mu.Lock()
		open := s.conns != nil
		if open {
			s.conns[conn] = struct{}{}
			s.ended.Go(func() { s.serve(conn) })
		}
		s.mu.Unlock()
		if !open {
			conn.Close()
		}
	}
}

// serve answers what comes on a connection, until that ends.
func (s *sink) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
	reader := bufio.NewReaderSize(conn, sinkLine)
	answer := []byte(s.answer)
	for {
		if err := conn.SetDeadline(time.Now().Add(sinkIdle)); err != nil {
			return
		}
		id, err := readDelivery(reader)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.arrivals = append(s.arrivals, arrival{id, time.Now()})
		s.mu.Unlock()
		s.received.Add(1)
		if s.wait > 0 {
			timer := time.NewTimer(s.wait)
			select {
			case <-timer.C:
			case <-s.released:
			}
			timer.Stop()
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

var (
	idHeader     = []byte("webhook-id")
	lengthHeader = []byte("content-length")
)

// readDelivery reads one request, and returns the id of its event.
func readDelivery(reader *bufio.Reader) (id webhook.ID, err error) {
	if _, err := reader.ReadSlice('\n'); err != nil { // the request line
		return id, err
	}
	length := 0
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return id, err
		}
		line = textproto.TrimBytes(line)
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte{':'})
		value = textproto.TrimBytes(value)
		switch {
		case bytes.EqualFold(name, idHeader):
			id, err = webhook.ParseID(string(value))
		case bytes.EqualFold(name, lengthHeader):
			length, err = strconv.Atoi(string(value))
		}
		if err != nil {
			return id, err
		}
	}
	if id == (webhook.ID{}) || length < 0 || length > sinkBody {
		return id, errors.New("not a delivery")
	}
	_, err = reader.Discard(length)
	return id, err
}

// forget makes the sink begin anew.
func (s *sink) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrivals = nil
	s.received.Store(0)
}

// came is what came since forget.
func (s *sink) came() []arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrivals[:len(s.arrivals):len(s.arrivals)]
}

// await returns when n requests have come, or fails when none has for a time.
func (s *sink) await(ctx context.Context, n int, stall time.Duration) error {
	last, since := s.received.Load(), time.Now()
	for {
		now := s.received.Load()
		switch {
		case now >= int64(n):
			return nil
		case now > last:
			last, since = now, time.Now()
		case time.Since(since) > stall:
			return &stalledError{n: n, received: int(now), stall: stall}
		}
		if err := pause(ctx, drainPoll); err != nil {
			return err
		}
	}
}

// stalledError is the end of a wait for deliveries.
type stalledError struct {
	n, received int
	stall       time.Duration
}

func (e *stalledError) Error() string {
	return fmt.Sprintf("of %d deliveries %d came, and no more for %s", e.n, e.received, e.stall)
}

// close ends it, and what is under way.
func (s *sink) close() error {
	s.release()
	err := s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.ended.Wait()
	return err
}
