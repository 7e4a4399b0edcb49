package courier_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/webhook"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// http2Receiver is a TLS server whose HTTP/2 is in the hands of onRequest, which
// is called for each request when its body has arrived. Returning false closes
// the connection.
func http2Receiver(t *testing.T, onRequest func(framer *http2.Framer, stream uint32) bool) (*httptest.Server, *atomic.Int64) {
	t.Helper()
	var requests atomic.Int64
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{NextProtos: []string{"h2"}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
		"h2": func(_ *http.Server, conn *tls.Conn, _ http.Handler) {
			defer conn.Close()
			if _, err := io.CopyN(io.Discard, conn, int64(len(http2.ClientPreface))); err != nil {
				return
			}
			framer := http2.NewFramer(conn, conn)
			_ = framer.WriteSettings()
			for {
				frame, err := framer.ReadFrame()
				if err != nil {
					return
				}
				switch frame := frame.(type) {
				case *http2.SettingsFrame:
					if !frame.IsAck() {
						_ = framer.WriteSettingsAck()
					}
				case *http2.DataFrame:
					if frame.StreamEnded() {
						requests.Add(1)
						if !onRequest(framer, frame.StreamID) {
							return
						}
					}
				}
			}
		},
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, &requests
}

// answerHeaders writes the header of an answer.
func answerHeaders(framer *http2.Framer, stream uint32, end bool, fields ...string) {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		_ = encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
}

func TestSendOverHTTP2(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		timeout   time.Duration // 0: patience
		onRequest func(framer *http2.Framer, stream uint32) bool
		want      want
		requests  int64 // as the receiver's server counts them
	}{
		"Answers": {0, func(f *http2.Framer, id uint32) bool {
			answerHeaders(f, id, true, ":status", "204")
			return true
		}, want{webhook.ReasonDelivered, 204}, 1},
		"HangsBeforeTheAnswer": {1500 * time.Millisecond, func(*http2.Framer, uint32) bool { return true }, want{webhook.ReasonTimeout, 0}, 1},
		"HangsInTheBody": {1500 * time.Millisecond, func(f *http2.Framer, id uint32) bool {
			answerHeaders(f, id, false, ":status", "200")
			_ = f.WriteData(id, false, []byte("abc"))
			return true
		}, want{webhook.ReasonSlowBody, 200}, 1},
		"ResetsTheStream": {0, func(f *http2.Framer, id uint32) bool {
			_ = f.WriteRSTStream(id, http2.ErrCodeInternal)
			return true
		}, want{webhook.ReasonReset, 0}, 1},
		"ResetsTheStreamInTheBody": {0, func(f *http2.Framer, id uint32) bool {
			answerHeaders(f, id, false, ":status", "200")
			_ = f.WriteData(id, false, []byte("abc"))
			_ = f.WriteRSTStream(id, http2.ErrCodeInternal)
			return true
		}, want{webhook.ReasonReset, 200}, 1},
		"ClosesTheConnection": {0, func(*http2.Framer, uint32) bool { return false }, want{webhook.ReasonReset, 0}, 1},
		"GoesAwayWithAnError": {0, func(f *http2.Framer, id uint32) bool {
			_ = f.WriteGoAway(id, http2.ErrCodeEnhanceYourCalm, nil)
			return false
		}, want{webhook.ReasonReset, 0}, 1},
		// A stream that the server says it did not process is sent once more, and
		// not again.
		"RefusesTheStream": {0, func(f *http2.Framer, id uint32) bool {
			_ = f.WriteRSTStream(id, http2.ErrCodeRefusedStream)
			return true
		}, want{webhook.ReasonReset, 0}, 2},
		"FindsAProtocolErrorInTheStream": {0, func(f *http2.Framer, id uint32) bool {
			_ = f.WriteRSTStream(id, http2.ErrCodeProtocol)
			return true
		}, want{webhook.ReasonReset, 0}, 2},
		"GoesAwayBeforeTheStream": {0, func(f *http2.Framer, _ uint32) bool {
			_ = f.WriteGoAway(0, http2.ErrCodeNo, nil)
			return false
		}, want{webhook.ReasonReset, 0}, 2},
		"AnswersAStatusOfZero": {0, func(f *http2.Framer, id uint32) bool {
			answerHeaders(f, id, true, ":status", "0")
			return true
		}, want{webhook.ReasonBadResponse, 0}, 1},
		// In the 16 bits of the record it would be 200.
		"AnswersAStatusOfFiveDigits": {0, func(f *http2.Framer, id uint32) bool {
			answerHeaders(f, id, true, ":status", "65736")
			return true
		}, want{webhook.ReasonBadResponse, 0}, 1},
		"AnswersANegativeStatus": {0, func(f *http2.Framer, id uint32) bool {
			answerHeaders(f, id, true, ":status", "-200")
			return true
		}, want{webhook.ReasonBadResponse, 0}, 1},
		"SendsInformationalAnswersWithoutEnd": {0, func(f *http2.Framer, id uint32) bool {
			for range 10_000 {
				answerHeaders(f, id, false, ":status", "103", "link", strings.Repeat("a", 100))
			}
			return true
		}, want{webhook.ReasonTooLarge, 0}, 1},
		"SendsAGiantHeader": {0, func(f *http2.Framer, id uint32) bool {
			var block bytes.Buffer
			encoder := hpack.NewEncoder(&block)
			_ = encoder.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
			for i := range 18 {
				_ = encoder.WriteField(hpack.HeaderField{Name: fmt.Sprint("x-", i), Value: strings.Repeat("~", 4000)})
			}
			raw := block.Bytes()
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: raw[:16000], EndStream: true})
			for raw = raw[16000:]; len(raw) > 0; {
				n := min(len(raw), 16000)
				_ = f.WriteContinuation(id, n == len(raw), raw[:n])
				raw = raw[n:]
			}
			return true
		}, want{webhook.ReasonTooLarge, 0}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, requests := http2Receiver(t, c.onRequest)
			req := newRequest(t, server.URL)
			if c.timeout > 0 {
				req.Timeout = c.timeout
			}
			check(t, courier.Send(t.Context(), newClient(t, server), req), c.want)
			if got := requests.Load(); got != c.requests {
				t.Errorf("the receiver's server got %d requests, want %d", got, c.requests)
			}
		})
	}

	t.Run("IsDeliveredByTheSecondStreamWhenTheFirstWasRefused", func(t *testing.T) {
		t.Parallel()
		var refused atomic.Bool
		server, requests := http2Receiver(t, func(f *http2.Framer, id uint32) bool {
			if refused.CompareAndSwap(false, true) {
				_ = f.WriteRSTStream(id, http2.ErrCodeRefusedStream)
				return true
			}
			answerHeaders(f, id, true, ":status", "200")
			return true
		})
		check(t, courier.Send(t.Context(), newClient(t, server), newRequest(t, server.URL)), want{webhook.ReasonDelivered, 200})
		if got := requests.Load(); got != 2 {
			t.Errorf("the receiver's server got %d requests, want 2", got)
		}
	})
}
