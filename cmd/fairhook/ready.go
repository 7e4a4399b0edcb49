//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// waitReady returns nil once url answers 200, and otherwise, when ctx ends or the
// process that should answer, what it last answered.
func waitReady(ctx context.Context, ended <-chan struct{}, url string) error {
	// Without a proxy and kept connections: this is a probe.
	transport := &http.Transport{DisableKeepAlives: true}
	probe := &http.Client{Transport: transport, Timeout: 2 * time.Second}
	ticker := time.NewTicker(readyPoll)
	defer ticker.Stop()
	last := errors.New("it was not asked yet")
	for {
		if err := probeOnce(ctx, probe, url); err == nil {
			return nil
		} else if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ticker.C:
		case <-ended:
			return last
		case <-ctx.Done():
			return last
		}
	}
}

func probeOnce(ctx context.Context, probe *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := probe.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body := make([]byte, 512)
		n, _ := resp.Body.Read(body)
		return fmt.Errorf("%s answers %s %s", url, resp.Status, strings.TrimSpace(string(body[:n])))
	}
	return nil
}

func isFree(address string) bool {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	return listener.Close() == nil
}

// freeAddress finds a free port of this machine below the range from which
// systems take the ports of outgoing connections, so that none of those takes it
// before the process that it is for.
func freeAddress() (string, error) {
	const low, high = 20000, 32000
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(low+mathrand.IntN(high-low)))
		if isFree(address) {
			return address, nil
		}
	}
	return "", fmt.Errorf("find a free port: %w", syscall.EADDRINUSE)
}

// reachable is the address by which this machine reaches a listener: one on all
// addresses is reached through the loopback.
func reachable(listen string) string {
	host, port, _ := net.SplitHostPort(listen)
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
