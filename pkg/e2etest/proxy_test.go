package e2etest

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// mode is what a proxy does with what passes.
type mode int32

const (
	passing     mode = iota
	cut              // every connection is broken, and no new one works
	stalled          // nothing passes, and nobody is told
	slow             // everything takes a while, both ways
	resetBefore      // some requests that store events are lost, and their connections reset
	resetMidway      // some are cut in two
	resetAfter       // some are carried out, COMMIT included, and their answers lost
	cutAfter         // the first of these, and then cut
)

func (m mode) String() string {
	return [...]string{"passing", "cut", "stalled", "slow", "reset before the request", "reset in the middle of the request", "reset during COMMIT", "cut during COMMIT"}[m]
}

const (
	// marker is in the payload of the events of a faultLedger, and so in the
	// requests that store them.
	marker = `"faults":`
	// slowness is what one piece of traffic takes in the mode slow, unless the
	// proxy says otherwise.
	slowness = 15 * time.Millisecond
)

// proxy stands between processes and their Postgres.
type proxy struct {
	listener net.Listener
	target   string
	slowness time.Duration // set before anything passes
	// strikes is how many requests were lost, cut or left without an answer.
	strikes atomic.Int64

	mu      sync.Mutex
	mode    mode          // guarded by mu
	changed chan struct{} // closed when mode changes; guarded by mu
	conns   []*net.TCPConn
	closed  bool // guarded by mu, as conns are
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, target: target, slowness: slowness, changed: make(chan struct{})}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			accepted, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.serve(accepted.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.set(cut)
		running.Wait()
	})
	return p
}

// through is a database URL by way of the proxy.
func (p *proxy) through(t *testing.T, databaseURL string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = p.listener.Addr().String()
	return u.String()
}

// set changes what the proxy does, also with what is under way.
func (p *proxy) set(m mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	close(p.changed)
	p.changed = make(chan struct{})
	if m == cut {
		for _, c := range p.conns {
			reset(c)
		}
		p.conns = nil
	}
}

func (p *proxy) now() (mode, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mode, p.changed
}

// adopt reports whether the connections may work.
func (p *proxy) adopt(conns ...*net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode == cut || p.closed {
		for _, c := range conns {
			reset(c)
		}
		return false
	}
	p.conns = append(p.conns, conns...)
	return true
}

// reset breaks a connection as a host does that has no memory of it.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func (p *proxy) serve(client *net.TCPConn) {
	dialed, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		reset(client)
		return
	}
	server := dialed.(*net.TCPConn)
	if !p.adopt(client, server) {
		return
	}
	// Set once an answer is to be lost: the connections end with it.
	var lose atomic.Bool
	var both sync.WaitGroup
	both.Go(func() {
		p.copy(server, client, func(piece []byte) bool { return p.request(server, piece, &lose) })
	})
	both.Go(func() {
		p.copy(client, server, func(piece []byte) bool {
			if lose.Load() {
				if !bytes.HasSuffix(piece, readyForQuery) {
					return true
				}
				// All of it has been carried out.
				if m, _ := p.now(); m == cutAfter {
					p.set(cut)
				}
				return false
			}
			_, err := client.Write(piece)
			return err == nil
		})
	})
	both.Wait()
}

// readyForQuery is what a server says last, when no transaction is open any more.
var readyForQuery = []byte("Z\x00\x00\x00\x05I")

// copy hands on what comes until one of the connections breaks or take says so,
// and breaks both.
func (p *proxy) copy(to, from *net.TCPConn, take func([]byte) bool) {
	defer reset(to)
	defer reset(from)
	buffer := make([]byte, 1<<20)
	for {
		n, err := from.Read(buffer)
		if n > 0 && (!p.wait() || !take(buffer[:n])) {
			return
		}
		if err != nil {
			return
		}
	}
}

// wait returns when something may pass, and false when nothing will.
func (p *proxy) wait() bool {
	for {
		m, changed := p.now()
		switch m {
		case stalled:
			<-changed
		case slow:
			select {
			case <-time.After(p.slowness):
				return true
			case <-changed:
			}
		case cut:
			return false
		case passing, resetBefore, resetMidway, resetAfter, cutAfter:
			return true
		}
	}
}

// request hands a request on, or a part of it, or not.
func (p *proxy) request(server io.Writer, piece []byte, lose *atomic.Bool) bool {
	m, _ := p.now()
	strike := m >= resetBefore && bytes.Contains(piece, []byte(marker)) && rand.N(3) == 0
	if !strike {
		_, err := server.Write(piece)
		return err == nil
	}
	p.strikes.Add(1)
	switch m {
	case resetMidway:
		_, _ = server.Write(piece[:len(piece)/2]) // the connection ends either way
		return false
	case resetAfter, cutAfter:
		lose.Store(true)
		_, err := server.Write(piece)
		return err == nil
	case passing, cut, stalled, slow, resetBefore:
	}
	return false
}
