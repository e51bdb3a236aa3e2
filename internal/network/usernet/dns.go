package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"github.com/fcvm/fcvm/internal/network"
)

const (
	dnsPort        = 53
	dnsTimeout     = 4 * time.Second // a little less than resolvers wait (resolv.conf(5): 5 s)
	dnsUDPSize     = 512             // RFC 1035, 2.3.4; more with EDNS(0), RFC 6891
	dnsMaxSize     = 65535
	dnsConnTimeout = 10 * time.Second
)

// hostNames are the names by which a container reaches its host, as Podman
// and Docker have them.
var hostNames = [...]string{"host.containers.internal.", "host.docker.internal."}

// resolver answers the guest's DNS questions with the host's means: names by
// the host's hosts file and name servers, whatever else is asked by the name
// servers alone.
type resolver struct {
	lookup     func(ctx context.Context, family, name string) ([]netip.Addr, error)
	resolvConf string
	slots      chan struct{}
}

func newResolver() *resolver {
	// The C library's resolver does not find a name that ends with a dot in
	// the hosts file, and takes a thread for each question.
	r := &net.Resolver{PreferGo: true}
	return &resolver{lookup: r.LookupNetIP, resolvConf: "/etc/resolv.conf", slots: make(chan struct{}, maxResolver)}
}

// serveDNS opens the DNS server's port on the link, UDP and TCP.
func (n *netstack) serveDNS() error {
	addr := tcpip.FullAddress{NIC: nic, Addr: stackAddr(dnsAddr), Port: dnsPort}
	u, err := gonet.DialUDP(n.stack, &addr, nil, ipv4.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("open the DNS server's port: %w", err)
	}
	t, err := gonet.ListenTCP(n.stack, addr, ipv4.ProtocolNumber)
	if err != nil {
		_ = u.Close()
		return fmt.Errorf("open the DNS server's port: %w", err)
	}
	context.AfterFunc(n.ctx, func() { _ = u.Close(); _ = t.Close() })
	n.tasks.Go(func() { n.dnsUDP(u) })
	n.tasks.Go(func() { n.dnsTCP(t) })
	return nil
}

func (n *netstack) dnsUDP(conn net.PacketConn) {
	buf := make([]byte, dnsMaxSize)
	for {
		size, from, err := conn.ReadFrom(buf)
		if n.ctx.Err() != nil {
			return
		}
		if err != nil || !acquire(n.resolver.slots) {
			continue // the guest asks again
		}
		query := append([]byte(nil), buf[:size]...)
		n.tasks.Go(func() {
			defer release(n.resolver.slots)
			if a := n.resolver.answer(n.ctx, network.UDP, query); a != nil {
				_, _ = conn.WriteTo(a, from)
			}
		})
	}
}

func (n *netstack) dnsTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !acquire(n.resolver.slots) {
			_ = c.Close()
			continue
		}
		n.tasks.Go(func() {
			defer release(n.resolver.slots)
			defer func() { _ = c.Close() }()
			stop := context.AfterFunc(n.ctx, func() { _ = c.Close() })
			defer stop()
			for n.ctx.Err() == nil {
				_ = c.SetDeadline(time.Now().Add(dnsConnTimeout))
				query, err := readDNS(c)
				if err != nil {
					return
				}
				a := n.resolver.answer(n.ctx, network.TCP, query)
				if a == nil || writeDNS(c, a) != nil {
					return
				}
			}
		})
	}
}

// readDNS and writeDNS do a message's framing on TCP: RFC 1035, 4.2.2.
func readDNS(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeDNS(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// answer makes the answer to a query; nil: it deserves none.
func (r *resolver) answer(ctx context.Context, protocol string, query []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	reply := dnsmessage.Message{Header: dnsmessage.Header{
		ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true,
	}}
	qs, err := p.AllQuestions()
	switch {
	case h.OpCode != 0:
		reply.RCode = dnsmessage.RCodeNotImplemented
		return pack(&reply, dnsUDPSize)
	case err != nil || len(qs) != 1:
		reply.RCode = dnsmessage.RCodeFormatError
		return pack(&reply, dnsUDPSize)
	}
	reply.Questions = qs
	limit := dnsMaxSize
	if protocol == network.UDP {
		limit = udpSize(&p)
	}
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	q := qs[0]
	switch {
	case q.Class == dnsmessage.ClassINET && q.Type == dnsmessage.TypeA:
		reply.Answers, reply.RCode = r.addresses(ctx, q)
	case q.Class == dnsmessage.ClassINET && q.Type == dnsmessage.TypeAAAA:
		// The guest's link has no IPv6: no name has an address there.
	default:
		if a := r.forward(ctx, protocol, query); a != nil {
			return a
		}
		reply.RCode = dnsmessage.RCodeServerFailure
	}
	return pack(&reply, limit)
}

// addresses answers a question for IPv4 addresses.
func (r *resolver) addresses(ctx context.Context, q dnsmessage.Question) ([]dnsmessage.Resource, dnsmessage.RCode) {
	var addrs []netip.Addr
	for _, name := range hostNames {
		if strings.EqualFold(q.Name.String(), name) {
			addrs = []netip.Addr{gatewayAddr}
		}
	}
	if addrs == nil {
		name := q.Name.String()
		if strings.Count(name, ".") == 1 {
			name = strings.TrimSuffix(name, ".") // the host's search list is for single words
		}
		var err error
		addrs, err = r.lookup(ctx, "ip4", name)
		var dnsErr *net.DNSError
		switch {
		case errors.As(err, &dnsErr) && dnsErr.IsNotFound:
			return nil, dnsmessage.RCodeNameError
		case err != nil:
			return nil, dnsmessage.RCodeServerFailure
		}
	}
	var rs []dnsmessage.Resource
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() {
			// The resolver does not say how long an answer holds: it keeps it.
			h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 0}
			rs = append(rs, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		}
	}
	return rs, dnsmessage.RCodeSuccess
}

// forward passes a query on to the host's name servers, in their order, and
// returns the first answer; nil: there is none.
func (r *resolver) forward(ctx context.Context, protocol string, query []byte) []byte {
	servers := nameServers(r.resolvConf)
	for i, server := range servers {
		deadline, _ := ctx.Deadline()
		share := time.Until(deadline) / time.Duration(len(servers)-i)
		one, cancel := context.WithTimeout(ctx, share)
		a, err := ask(one, protocol, server, query)
		cancel()
		if err == nil {
			return a
		}
	}
	return nil
}

// ask sends one query to one server.
func ask(ctx context.Context, protocol string, server netip.Addr, query []byte) ([]byte, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, protocol, netip.AddrPortFrom(server, dnsPort).String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if protocol == network.TCP {
		if err := writeDNS(c, query); err != nil {
			return nil, err
		}
		return readDNS(c)
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, dnsMaxSize)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if n >= 2 && buf[0] == query[0] && buf[1] == query[1] { // the query's id
			return buf[:n], nil
		}
	}
}

// nameServers reads the host's name servers, at most three as resolv.conf(5)
// has it. They may change while a VM runs.
func nameServers(path string) []netip.Addr {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var list []netip.Addr
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(list) == 3 {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, a)
		}
	}
	return list
}

// udpSize is the size of an answer that the client takes over UDP, by its
// EDNS(0) record. p is behind the questions.
func udpSize(p *dnsmessage.Parser) int {
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return dnsUDPSize
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return dnsUDPSize
		}
		if h.Type == dnsmessage.TypeOPT {
			return max(dnsUDPSize, int(h.Class))
		}
		if p.SkipAdditional() != nil {
			return dnsUDPSize
		}
	}
}

// pack encodes a reply; one that is larger than limit loses its answers, and
// says so, for the client to ask over TCP.
func pack(m *dnsmessage.Message, limit int) []byte {
	b, err := m.Pack()
	if err == nil && len(b) > limit {
		m.Truncated, m.Answers = true, nil
		b, err = m.Pack()
	}
	if err != nil {
		return nil
	}
	return b
}
