// Package dnstest answers name lookups in tests, so that a test decides what a
// host name resolves to, and when it changes.
package dnstest

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

// Resolver looks every name up by calling answer with it, without its trailing
// dot, once per lookup of IPv4 and once of IPv6 addresses; each gets the
// addresses of its family. A nil answer means that the name does not exist. It
// never uses the network. Answers are not cached.
func Resolver(answer func(name string) []netip.Addr) *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go serve(server, answer) // ends with the connection, which the resolver closes
			return client, nil
		},
	}
}

// Silent is a resolver whose server never answers.
func Silent() *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, server) }()
			return client, nil
		},
	}
}

// serve answers queries framed as over TCP (RFC 1035, section 4.2.2), which is
// how net.Resolver talks over a connection that is not a packet connection.
func serve(conn net.Conn, answer func(name string) []netip.Addr) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		reply, err := respond(query, answer)
		if err != nil {
			return
		}
		binary.BigEndian.PutUint16(size[:], uint16(len(reply)))
		if _, err := conn.Write(append(size[:], reply...)); err != nil {
			return
		}
	}
}

func respond(query []byte, answer func(name string) []netip.Addr) ([]byte, error) {
	var message dnsmessage.Message
	if err := message.Unpack(query); err != nil {
		return nil, err
	}
	question := message.Questions[0]
	name := question.Name.String()
	addrs := answer(name[:len(name)-1])
	message.Response, message.Authoritative, message.RecursionAvailable = true, true, true
	message.Additionals = nil
	if addrs == nil {
		message.RCode = dnsmessage.RCodeNameError
	}
	for _, addr := range addrs {
		header := dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET}
		switch {
		case addr.Is4() && question.Type == dnsmessage.TypeA:
			message.Answers = append(message.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && question.Type == dnsmessage.TypeAAAA:
			message.Answers = append(message.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	return message.Pack()
}
