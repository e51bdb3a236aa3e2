package nettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fcvm/fcvm/internal/network"
)

// OutsideName is what the neighbour's name server knows: its own addresses,
// and a text.
const OutsideName = "outside.test."

// NameServer is the neighbour's name server, which the scratch host asks.
type NameServer struct{ asked atomic.Int64 }

// ServeNames starts it, until the test's end.
func ServeNames(t testing.TB, neighbour *Sockets) *NameServer {
	t.Helper()
	s := new(NameServer)
	pc := neighbour.ListenPacket(t, "udp4", NeighbourAddr+":53")
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				if a, err := s.answer(buf[:n]); err == nil {
					_, _ = pc.WriteTo(a, from)
				}
			}
		}
	}()
	l := neighbour.Listen(t, "tcp4", NeighbourAddr+":53")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if q, err := readFramed(c); err == nil {
				if a, err := s.answer(q); err == nil {
					_ = writeFramed(c, a)
				}
			}
			_ = c.Close()
		}
	}()
	return s
}

func (s *NameServer) answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, fmt.Errorf("no question: %w", err)
	}
	s.asked.Add(1)
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
	switch {
	case !strings.EqualFold(q.Name.String(), OutsideName):
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: netip.MustParseAddr(NeighbourAddr).As4()}}}
	case q.Type == dnsmessage.TypeAAAA:
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(NeighbourAddr6).As16()}}}
	case q.Type == dnsmessage.TypeTXT:
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.TXTResource{TXT: []string{"text"}}}}
	}
	return m.Pack()
}

func readFramed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeFramed(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

// answered reports whether the neighbour's name server answers over c.
func answered(c net.Conn) bool {
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	q, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName(OutsideName), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
	}}).Pack()
	if err == nil {
		_, err = c.Write(q)
	}
	if err == nil {
		_, err = c.Read(make([]byte, 512))
	}
	return err == nil
}

// Ask asks the link's name server. dial connects from the guest.
func Ask(dial func(network, addr string) (net.Conn, error), protocol, name string, typ dnsmessage.Type) (rcode dnsmessage.RCode, answers []string, err error) {
	q, err := (&dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}).Pack()
	if err != nil {
		return 0, nil, err
	}
	var b []byte
	for range 3 { // a datagram may get lost
		if b, err = askOnce(dial, protocol, q); err == nil {
			break
		}
	}
	if err != nil {
		return 0, nil, err
	}
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		return 0, nil, err
	}
	if !m.Response || m.ID != 4711 {
		return 0, nil, fmt.Errorf("an answer to another question, %d", m.ID)
	}
	for _, r := range m.Answers {
		switch r := r.Body.(type) {
		case *dnsmessage.AResource:
			answers = append(answers, netip.AddrFrom4(r.A).String())
		case *dnsmessage.AAAAResource:
			answers = append(answers, netip.AddrFrom16(r.AAAA).String())
		case *dnsmessage.TXTResource:
			answers = append(answers, r.TXT...)
		}
	}
	return m.RCode, answers, nil
}

func askOnce(dial func(network, addr string) (net.Conn, error), protocol string, q []byte) ([]byte, error) {
	c, err := dial(protocol, net.JoinHostPort(network.DNS, "53"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if protocol == network.TCP {
		if err := writeFramed(c, q); err != nil {
			return nil, err
		}
		return readFramed(c)
	}
	if _, err := c.Write(q); err != nil {
		return nil, err
	}
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	return b[:n], err
}

// WantAnswer fails the test unless the answer is this one.
func WantAnswer(t testing.TB, dial func(network, addr string) (net.Conn, error), name string, typ dnsmessage.Type, rcode dnsmessage.RCode, want string) {
	t.Helper()
	for _, protocol := range []string{network.UDP, network.TCP} {
		code, answers, err := Ask(dial, protocol, name, typ)
		if err != nil || code != rcode || strings.Join(answers, " ") != want {
			t.Errorf("%s %s over %s: %s %q, %v; want %s %q", name, typ, protocol, code, answers, err, rcode, want)
		}
	}
}
