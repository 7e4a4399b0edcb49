package identity

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/webhook"
	"github.com/fairhook/fairhook/pkg/webhook/certtest"
)

// server is one that wants a client certificate, and remembers by which connections
// it was spoken to.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	open   map[string]bool // by the client's address
	opened int
}

// newServer makes one. Each answer is the subject of the client's certificate, the
// protocol and the client's address.
func newServer(t *testing.T, ca *certtest.Authority, http2 bool) *server {
	t.Helper()
	s := &server{open: map[string]bool{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName+" "+r.Proto+" "+r.RemoteAddr)
	}))
	s.TLS = &tls.Config{
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(), Certificates: []tls.Certificate{ca.Issue(t, "server").TLS},
	}
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch state {
		case http.StateNew:
			s.opened++
			s.open[conn.RemoteAddr().String()] = true
		case http.StateClosed, http.StateHijacked:
			delete(s.open, conn.RemoteAddr().String())
		case http.StateActive, http.StateIdle:
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) connections() (open, opened int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open), s.opened
}

func ownTLS(pair certtest.Pair, ca *certtest.Authority) *webhook.TLS {
	return &webhook.TLS{
		ClientCertificate: webhook.NewSecret(pair.Certificate), ClientKey: webhook.NewSecret(pair.Key), CACertificates: webhook.NewSecret(ca.PEM),
	}
}

// say makes a request, and returns the parts of the answer.
func say(t *testing.T, c *Clients, id webhook.ID, config *webhook.TLS, url string) (subject, protocol, address string) {
	t.Helper()
	client, err := c.Of(id, config)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(body), " ")
	return parts[0], parts[1], parts[2]
}

func TestClients(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "ca")

	for name, protocol := range map[string]string{"OverHTTP1": "HTTP/1.1", "OverHTTP2": "HTTP/2.0"} {
		t.Run("ShowEachWebhooksCertificateAndShareNoConnection"+name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, ca, name == "OverHTTP2")
			clients := NewClients(newGuard(t, egress.Config{}), 0)
			one, two := newID(), newID()
			oneTLS, twoTLS := ownTLS(ca.Issue(t, "one"), ca), ownTLS(ca.Issue(t, "two"), ca)
			firstSubject, got, first := say(t, clients, one, oneTLS, s.URL)
			secondSubject, _, second := say(t, clients, two, twoTLS, s.URL)
			copied := *oneTLS
			_, _, again := say(t, clients, one, &copied, s.URL)
			if firstSubject != "one" || secondSubject != "two" || got != protocol {
				t.Errorf("the server saw %s and %s over %s", firstSubject, secondSubject, got)
			}
			if first == second || again != first {
				t.Errorf("connections %s, %s, and %s for the first one again", first, second, again)
			}
			// Even with the same certificate.
			if _, _, third := say(t, clients, newID(), oneTLS, s.URL); third == first {
				t.Errorf("another webhook's request came over %s too", third)
			}
		})
	}

	t.Run("AreNewWhenTheCertificateChangesAndTheOldConnectionEnds", func(t *testing.T) {
		t.Parallel()
		s := newServer(t, ca, false)
		clients, id := NewClients(newGuard(t, egress.Config{}), 0), newID()
		say(t, clients, id, ownTLS(ca.Issue(t, "old"), ca), s.URL)
		if subject, _, _ := say(t, clients, id, ownTLS(ca.Issue(t, "new"), ca), s.URL); subject != "new" {
			t.Errorf("the server saw %s", subject)
		}
		eventually(t, "the old connection ends", func() bool { open, opened := s.connections(); return open == 1 && opened == 2 })
	})

	t.Run("AreGivenUpWhenThereAreTooMany", func(t *testing.T) {
		t.Parallel()
		s := newServer(t, ca, true)
		clients := NewClients(newGuard(t, egress.Config{}), 2)
		config := ownTLS(ca.Issue(t, "one"), ca)
		used := newID()
		say(t, clients, used, config, s.URL)
		say(t, clients, newID(), config, s.URL)
		_, _, before := say(t, clients, used, config, s.URL)
		for range 5 {
			say(t, clients, newID(), config, s.URL)
			if _, _, after := say(t, clients, used, config, s.URL); after != before {
				t.Fatal("the one used last was given up")
			}
		}
		eventually(t, "the others' connections end", func() bool { open, _ := s.connections(); return open == 2 })
	})

	t.Run("TrustTheAuthoritiesOfTheWebhookInsteadOfTheSystems", func(t *testing.T) {
		t.Parallel()
		s := newServer(t, ca, false)
		// To the guard, the server's authority is one of the system's.
		guard := newGuard(t, egress.Config{RootCAs: ca.Pool()})
		clients := NewClients(guard, 0)
		config := ownTLS(ca.Issue(t, "one"), ca)
		config.CACertificates = webhook.NewSecret(certtest.New(t, "another").PEM)
		client, err := clients.Of(newID(), config)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := client.Get(s.URL); err == nil {
			resp.Body.Close()
			t.Error("a server of an authority that the webhook does not name is trusted")
		}
		config = ownTLS(ca.Issue(t, "one"), ca)
		config.CACertificates = webhook.Secret{}
		if subject, _, _ := say(t, clients, newID(), config, s.URL); subject != "one" {
			t.Errorf("without authorities of its own the server saw %q", subject)
		}
	})

	t.Run("ExpectTheServerNameOfTheWebhook", func(t *testing.T) {
		t.Parallel()
		var asked string
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = r.TLS.ServerName }))
		s.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "server", "hooks.internal").TLS}}
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.StartTLS()
		t.Cleanup(s.Close)
		clients := NewClients(newGuard(t, egress.Config{}), 0)
		config := &webhook.TLS{CACertificates: webhook.NewSecret(ca.PEM), ServerName: "hooks.internal"}
		client, err := clients.Of(newID(), config)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if asked != "hooks.internal" {
			t.Errorf("the server was asked for %q", asked)
		}
		config.ServerName = ""
		if client, err = clients.Of(newID(), config); err != nil {
			t.Fatal(err)
		}
		if resp, err := client.Get(s.URL); err == nil {
			resp.Body.Close()
			t.Error("a certificate for another name is trusted")
		}
	})

	t.Run("KeepToTheRulesForAddresses", func(t *testing.T) {
		t.Parallel()
		s := newServer(t, ca, false)
		_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
		clients := NewClients(newGuard(t, egress.Config{}), 0)
		client, err := clients.Of(newID(), ownTLS(ca.Issue(t, "one"), ca))
		if err != nil {
			t.Fatal(err)
		}
		client.Timeout = 10 * time.Second
		if resp, err := client.Get("https://127.0.0.2:" + port); err == nil || !strings.Contains(err.Error(), "private") {
			if err == nil {
				resp.Body.Close()
			}
			t.Errorf("an address that is not allowed: %v", err)
		}
	})

	t.Run("WithoutATLSOfTheirOwnAreOneForAll", func(t *testing.T) {
		t.Parallel()
		clients := NewClients(newGuard(t, egress.Config{}), 0)
		one, err := clients.Of(newID(), nil)
		two, err2 := clients.Of(newID(), nil)
		if one != two || err != nil || err2 != nil {
			t.Errorf("%p, %v and %p, %v", one, err, two, err2)
		}
	})

	t.Run("OfWhatIsNoPairAreAnErrorThatRepeatsNothing", func(t *testing.T) {
		t.Parallel()
		clients := NewClients(newGuard(t, egress.Config{}), 0)
		for _, config := range []*webhook.TLS{
			{ClientCertificate: webhook.NewSecret("hidden"), ClientKey: webhook.NewSecret("hidden")}, {CACertificates: webhook.NewSecret("hidden")},
		} {
			if _, err := clients.Of(newID(), config); err == nil || strings.Contains(err.Error(), "hidden") {
				t.Errorf("got %v", err)
			}
		}
	})
}
