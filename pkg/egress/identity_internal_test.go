package egress

import (
	"bytes"
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// failingConn reads what it was given, and then fails; its writes fail when told to.
type failingConn struct {
	net.Conn
	answers bytes.Buffer
	fails   error // of writes; nil: they work
}

func (c *failingConn) Read(p []byte) (int, error) { return c.answers.Read(p) }

func (c *failingConn) Write(p []byte) (int, error) {
	if c.fails != nil {
		return 0, c.fails
	}
	return len(p), nil
}

func TestAWriteThatFailsWaitsForWhatTheOtherSideSaid(t *testing.T) {
	t.Parallel()
	dial := func(t *testing.T) (*failingConn, net.Conn) {
		t.Helper()
		inner := &failingConn{}
		conn, err := dialPatiently(func(context.Context, string, string) (net.Conn, error) { return inner, nil })(t.Context(), "tcp", "x")
		if err != nil {
			t.Fatal(err)
		}
		conn.(*patient).newUntil = time.Time{} // it is not new any more
		return inner, conn
	}
	write := func(t *testing.T, conn net.Conn, want error) {
		t.Helper()
		n, err := conn.Write([]byte("abc"))
		if !errors.Is(err, want) || err == nil && n != 3 {
			t.Errorf("wrote %d, %v; want %v", n, err, want)
		}
	}
	for name, broken := range map[string]error{"Closed": syscall.EPIPE, "Reset": syscall.ECONNRESET} {
		t.Run("WhenItIsToAnswerStill"+name, func(t *testing.T) {
			t.Parallel()
			inner, conn := dial(t)
			write(t, conn, nil) // our last part of the handshake
			inner.fails = &net.OpError{Op: "write", Err: broken}
			write(t, conn, nil)
			inner.answers.WriteString("alert")
			if n, err := conn.Read(make([]byte, 10)); n != 5 || err != nil {
				t.Errorf("read %d, %v", n, err)
			}
			write(t, conn, broken) // it has been heard
		})
	}
	t.Run("WhenItIsNewAndItsAlertWasRead", func(t *testing.T) {
		t.Parallel()
		inner, conn := dial(t)
		conn.(*patient).newUntil = time.Now().Add(time.Hour)
		write(t, conn, nil)
		inner.answers.WriteString("alert")
		if n, err := conn.Read(make([]byte, 10)); n != 5 || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
		inner.fails = syscall.EPIPE
		write(t, conn, nil)
	})
	t.Run("ButNotWhenNothingWasAskedOfIt", func(t *testing.T) {
		t.Parallel()
		inner, conn := dial(t)
		inner.fails = syscall.EPIPE // as on a connection that was idle
		write(t, conn, syscall.EPIPE)
	})
	t.Run("NorWhenItFailsInAnotherWay", func(t *testing.T) {
		t.Parallel()
		inner, conn := dial(t)
		write(t, conn, nil)
		inner.fails = net.ErrClosed
		write(t, conn, net.ErrClosed)
	})
	t.Run("AndADialThatFailsFails", func(t *testing.T) {
		t.Parallel()
		_, err := dialPatiently(func(context.Context, string, string) (net.Conn, error) { return nil, ErrBlocked })(t.Context(), "tcp", "x")
		if !errors.Is(err, ErrBlocked) {
			t.Errorf("got %v", err)
		}
	})
}
