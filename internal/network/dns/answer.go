package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fcvm/fcvm/internal/network"
)

// answer makes the answer to a query; nil: it deserves none.
func (s *Server) answer(ctx context.Context, protocol string, query []byte) []byte {
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
		return pack(&reply, udpSize)
	case err != nil || len(qs) != 1:
		reply.RCode = dnsmessage.RCodeFormatError
		return pack(&reply, udpSize)
	}
	reply.Questions = qs
	limit := maxSize
	if protocol == network.UDP {
		limit = clientSize(&p)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	q := qs[0]
	isAddr := q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeAAAA
	switch {
	case q.Class == dnsmessage.ClassINET && isAddr:
		reply.Answers, reply.RCode = s.addresses(ctx, q)
	case !s.Egress.AllowsName(strings.TrimSuffix(q.Name.String(), ".")):
		reply.RCode = dnsmessage.RCodeRefused
	default:
		if a := s.forward(ctx, protocol, query); a != nil {
			return a
		}
		reply.RCode = dnsmessage.RCodeServerFailure
	}
	return pack(&reply, limit)
}

// addresses answers a question for addresses of one family.
func (s *Server) addresses(ctx context.Context, q dnsmessage.Question) ([]dnsmessage.Resource, dnsmessage.RCode) {
	addrs, code := s.find(ctx, strings.ToLower(strings.TrimSuffix(q.Name.String(), ".")), q.Type == dnsmessage.TypeAAAA)
	var rs []dnsmessage.Resource
	for _, a := range addrs {
		a = a.Unmap()
		// The resolver does not say how long an answer holds: it keeps it.
		r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 0}}
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			r.Body = &dnsmessage.AResource{A: a.As4()}
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			r.Body = &dnsmessage.AAAAResource{AAAA: a.As16()}
		default:
			continue
		}
		rs = append(rs, r)
	}
	return rs, code
}

// find returns a name's addresses: the host's own, other VMs', and what the
// host's resolver says.
func (s *Server) find(ctx context.Context, name string, v6 bool) ([]netip.Addr, dnsmessage.RCode) {
	if slices.Contains(network.HostNames[:], name) {
		return []netip.Addr{s.Host}, dnsmessage.RCodeSuccess
	}
	if s.Names != nil {
		if addrs := s.Names(name); addrs != nil {
			return addrs, dnsmessage.RCodeSuccess
		}
	}
	if !s.Egress.AllowsName(name) {
		return nil, dnsmessage.RCodeRefused
	}
	if v6 && !s.IPv6 {
		// The guest's link has no IPv6: no name has an address there.
		return nil, dnsmessage.RCodeSuccess
	}
	family := "ip4"
	if v6 {
		family = "ip6"
	}
	full := name
	if strings.Contains(name, ".") {
		full += "." // the host's search list is for single words
	}
	addrs, err := s.lookup(ctx, family, full)
	var dnsErr *net.DNSError
	switch {
	case errors.As(err, &dnsErr) && dnsErr.IsNotFound && v6:
		return nil, dnsmessage.RCodeSuccess // it may have addresses of the other family
	case errors.As(err, &dnsErr) && dnsErr.IsNotFound:
		return nil, s.notFound(ctx, full)
	case err != nil:
		return nil, dnsmessage.RCodeServerFailure
	}
	if s.Learn != nil {
		s.Learn(addrs)
	}
	return addrs, dnsmessage.RCodeSuccess
}

// notFound is what is said of a name without addresses of IPv4. It may have some of
// the other family, and clients believe the first answer that there is no such name:
// musl's resolver does not look at the second.
func (s *Server) notFound(ctx context.Context, name string) dnsmessage.RCode {
	if s.IPv6 {
		if _, err := s.lookup(ctx, "ip6", name); err == nil {
			return dnsmessage.RCodeSuccess
		}
	}
	return dnsmessage.RCodeNameError
}

// lookUp asks the host's resolver for a name's addresses of a family, "ip4" or
// "ip6".
func (s *Server) lookUp(ctx context.Context, family, name string) (addrs []netip.Addr, err error) {
	inTurn(ctx, s.servers(), func(ctx context.Context, server netip.Addr) bool {
		addrs, err = resolver(ctx, server).LookupNetIP(ctx, family, name)
		var dnsErr *net.DNSError
		return err == nil || errors.As(err, &dnsErr) && dnsErr.IsNotFound
	})
	return addrs, err
}

// resolver asks one name server, until ctx ends. A resolver that knew all of them
// would wait for the first one longer than the guest waits at all.
func resolver(ctx context.Context, server netip.Addr) *net.Resolver {
	dial := func(_ context.Context, protocol, _ string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, protocol, netip.AddrPortFrom(server, Port).String())
		if err != nil {
			return nil, err
		}
		// The resolver itself only turns its back on a question that is not
		// answered in time.
		context.AfterFunc(ctx, func() { _ = c.Close() })
		return c, nil
	}
	// The C library's resolver does not find a name that ends with a dot in the
	// hosts file, and takes a thread for each question.
	return &net.Resolver{PreferGo: true, Dial: dial}
}

// forward passes a query on to the name servers, in their order, and returns
// the first answer; nil: there is none.
func (s *Server) forward(ctx context.Context, protocol string, query []byte) (answer []byte) {
	inTurn(ctx, s.servers(), func(ctx context.Context, server netip.Addr) bool {
		var err error
		answer, err = ask(ctx, protocol, server, query)
		return err == nil
	})
	return answer
}

// inTurn has name servers asked, in their order, until one has answered. Each has
// its share of the time that is left.
func inTurn(ctx context.Context, servers []netip.Addr, ask func(ctx context.Context, server netip.Addr) (answered bool)) {
	for i, server := range servers {
		deadline, _ := ctx.Deadline()
		one, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(servers)-i))
		answered := ask(one, server)
		cancel()
		if answered {
			return
		}
	}
}

// servers are the name servers to ask, now: there is always one.
func (s *Server) servers() []netip.Addr {
	if len(s.Servers) > 0 {
		return s.Servers
	}
	if list := nameServers(s.resolvConf); len(list) > 0 {
		return list
	}
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})} // resolv.conf(5)
}

// ask sends one query to one server.
func ask(ctx context.Context, protocol string, server netip.Addr, query []byte) ([]byte, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, protocol, netip.AddrPortFrom(server, Port).String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if protocol == network.TCP {
		if err := writeMessage(c, query); err != nil {
			return nil, err
		}
		return readMessage(c)
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, maxSize)
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

// clientSize is the size of an answer that the client takes over UDP, by its
// EDNS(0) record. p is behind the questions.
func clientSize(p *dnsmessage.Parser) int {
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return udpSize
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return udpSize
		}
		if h.Type == dnsmessage.TypeOPT {
			return max(udpSize, int(h.Class))
		}
		if p.SkipAdditional() != nil {
			return udpSize
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
