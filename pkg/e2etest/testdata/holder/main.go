// Command holder is a receiver that answers nothing until it is told to: GET
// /held says how many requests it holds, and POST /release answers them all,
// and every later one, with 200. It is a program of its own since a test with
// the race detector cannot have ten thousand goroutines.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(listener.Addr())

	var held atomic.Int64
	release := make(chan struct{})
	releaseOnce := sync.OnceFunc(func() { close(release) })
	http.HandleFunc("GET /held", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, held.Load()) })
	http.HandleFunc("POST /release", func(http.ResponseWriter, *http.Request) { releaseOnce() })
	http.HandleFunc("POST /hold", func(_ http.ResponseWriter, r *http.Request) {
		// Only once the body is read does the server notice a sender that is gone.
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		held.Add(1)
		defer held.Add(-1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	fmt.Fprintln(os.Stderr, http.Serve(listener, nil))
	os.Exit(1)
}
