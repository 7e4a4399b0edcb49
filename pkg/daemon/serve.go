package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// NewHTTPServer is an http.Server for small requests, such as probes and
// scrapes, whose timeouts and limits a slow or hostile client cannot get around.
func NewHTTPServer(handler http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

// CheckListen is a rule (Settings.Check) for an address to listen on: host:port,
// the host empty for all addresses. Whether it is free, or of this machine, only
// listening can tell.
func CheckListen(address *string) func() error {
	return func() error {
		_, port, err := net.SplitHostPort(*address)
		if err == nil && port != "" {
			_, err = net.LookupPort("tcp", port)
		}
		if err != nil || port == "" {
			return fmt.Errorf("%q is not an address with a port: write it like 127.0.0.1:8080 or :8080", *address)
		}
		return nil
	}
}

// Serve returns a stage (see Stages) that serves on listener until it is told to
// stop, then takes no new connection and waits for the requests under way. Those
// that are still there when drain ends are cut off, which is an error.
func Serve(server *http.Server, listener net.Listener) func(ctx, drain context.Context) error {
	return func(ctx, drain context.Context) error {
		served := make(chan error, 1)
		go func() { served <- server.Serve(listener) }()
		select {
		case err := <-served:
			return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
		case <-ctx.Done():
		}
		err := server.Shutdown(drain)
		if err != nil {
			err = errors.Join(fmt.Errorf("finish requests on %s: %w", listener.Addr(), err), server.Close())
		}
		<-served
		return err
	}
}
