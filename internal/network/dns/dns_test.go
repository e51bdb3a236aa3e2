package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/fcvm/fcvm/internal/network"
)

// testResolver knows the addresses of one name, and has a name server that cannot be
// asked.
func testResolver(addrs []netip.Addr, err error) *Server {
	return &Server{
		Config: Config{Servers: []netip.Addr{{}}},
		lookup: func(context.Context, string, string) ([]netip.Addr, error) { return addrs, err },
		slots:  make(chan struct{}, 1),
	}
}

func answerTo(t *testing.T, r *Server, protocol string, q []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(r.answer(t.Context(), protocol, q)); err != nil {
		t.Fatal(err)
	}
	if m.ID != 4711 || !m.Response {
		t.Errorf("answer has id %d, response %t", m.ID, m.Response)
	}
	return m
}

func TestAnswerCodes(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		typ  dnsmessage.Type
		want dnsmessage.RCode
	}{
		{"no such name", &net.DNSError{IsNotFound: true}, dnsmessage.TypeA, dnsmessage.RCodeNameError},
		{"no answer", &net.DNSError{IsTimeout: true}, dnsmessage.TypeA, dnsmessage.RCodeServerFailure},
		{"other error", errors.New("x"), dnsmessage.TypeA, dnsmessage.RCodeServerFailure},
		{"no name server", nil, dnsmessage.TypeMX, dnsmessage.RCodeServerFailure},
		{"IPv6", nil, dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if m := answerTo(t, testResolver(nil, tt.err), network.UDP, query(t, "example.org.", tt.typ)); m.RCode != tt.want {
				t.Errorf("got %s, want %s", m.RCode, tt.want)
			}
		})
	}
}

// A name that has only addresses of IPv6 is there, whatever the question is for:
// clients take one answer that says otherwise for both.
func TestNameOfIPv6Alone(t *testing.T) {
	for _, tt := range []struct {
		name string
		typ  dnsmessage.Type
		want dnsmessage.RCode
	}{
		{"six.example.", dnsmessage.TypeA, dnsmessage.RCodeSuccess},
		{"six.example.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess},
		{"absent.example.", dnsmessage.TypeA, dnsmessage.RCodeNameError},
	} {
		s := testResolver(nil, nil)
		s.IPv6 = true
		s.lookup = func(_ context.Context, family, name string) ([]netip.Addr, error) {
			if family == "ip6" && name == "six.example." {
				return []netip.Addr{netip.MustParseAddr("2001:db8::6")}, nil
			}
			return nil, &net.DNSError{IsNotFound: true}
		}
		if m := answerTo(t, s, network.UDP, query(t, tt.name, tt.typ)); m.RCode != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.name, tt.typ, m.RCode, tt.want)
		}
	}
}

// exhausted is a listener of a process that has no descriptor left, once.
type exhausted struct {
	net.Listener
	told bool
}

func (l *exhausted) Accept() (net.Conn, error) {
	if !l.told {
		l.told = true
		return nil, os.NewSyscallError("accept4", syscall.EMFILE)
	}
	return l.Listener.Accept()
}

// A connection that could not be taken is not the last one.
func TestServeTCPGoesOn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := testResolver([]netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.ServeTCP(ctx, &exhausted{Listener: l}) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if err := writeMessage(c, query(t, "example.org.", dnsmessage.TypeA)); err != nil {
		t.Error(err)
	}
	if _, err := readMessage(c); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	cancel()
	<-done
}

// An answer that does not fit says so over UDP, and is complete over TCP.
func TestAnswerTruncated(t *testing.T) {
	var addrs []netip.Addr
	for i := range 100 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	r, q := testResolver(addrs, nil), query(t, "example.org.", dnsmessage.TypeA)
	if m := answerTo(t, r, network.UDP, q); !m.Truncated || len(m.Answers) != 0 {
		t.Errorf("UDP: truncated %t, %d answers", m.Truncated, len(m.Answers))
	}
	if m := answerTo(t, r, network.TCP, q); m.Truncated || len(m.Answers) != 100 {
		t.Errorf("TCP: truncated %t, %d answers", m.Truncated, len(m.Answers))
	}
	var m dnsmessage.Message
	if err := m.Unpack(q); err != nil {
		t.Fatal(err)
	}
	h := dnsmessage.ResourceHeader{}
	if err := h.SetEDNS0(4096, dnsmessage.RCodeSuccess, false); err != nil {
		t.Fatal(err)
	}
	h.Name = dnsmessage.MustNewName(".")
	m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	q, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if m := answerTo(t, r, network.UDP, q); m.Truncated || len(m.Answers) != 100 {
		t.Errorf("UDP with EDNS(0): truncated %t, %d answers", m.Truncated, len(m.Answers))
	}
}

// The names of the policy are looked up though nobody asks, those of the host and
// what has a star are not.
func TestRelearn(t *testing.T) {
	r := testResolver(nil, nil)
	asked := make(chan string, 10)
	r.lookup = func(_ context.Context, family, name string) ([]netip.Addr, error) {
		asked <- family + " " + name
		return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
	}
	learned := make(chan []netip.Addr, 10)
	r.Learn = func(addrs []netip.Addr) { learned <- addrs }
	r.IPv6 = true
	var err error
	if r.Egress, err = network.ParseEgress([]string{"example.org", "*.example.net", network.HostNames[0]}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Relearn(ctx) }()
	for _, want := range []string{"ip4 example.org.", "ip6 example.org."} {
		if got := <-asked; got != want {
			t.Errorf("asked for %q, want %q", got, want)
		}
		<-learned
	}
	cancel()
	<-done
	if len(asked)+len(learned) > 0 {
		t.Errorf("%d more questions, %d more answers", len(asked), len(learned))
	}
}

func TestNameServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver x\nnameserver\n nameserver 2001:db8::1\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range nameServers(path) {
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"192.0.2.1", "2001:db8::1", "192.0.2.3"}, got); diff != "" {
		t.Errorf("name servers (-want +got):\n%s", diff)
	}
	// Without any it is the one on this host: resolv.conf(5).
	if list := (&Server{resolvConf: "/nonexistent"}).servers(); len(list) != 1 || !list[0].IsLoopback() {
		t.Errorf("name servers %v", list)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 12))
	f.Add([]byte("\x12\x67\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, q []byte) {
		a := testResolver([]netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1})}, nil).answer(t.Context(), network.UDP, q)
		if a == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(a); err != nil || !m.Response || a[0] != q[0] || a[1] != q[1] {
			t.Fatalf("answer %x to %x: %v", a, q, err)
		}
	})
}

func query(t *testing.T, name string, typ dnsmessage.Type) []byte {
	t.Helper()
	b, err := (&dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A server tells a guest of names that its policy allows, and asks nobody for
// others.
func TestPolicyOfNames(t *testing.T) {
	egress, err := network.ParseEgress([]string{"example.org", "198.51.100.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrFrom4([4]byte{192, 0, 2, 1})
	var asked []string
	var learned []netip.Addr
	s := testResolver(nil, nil)
	s.lookup = func(_ context.Context, _, name string) ([]netip.Addr, error) {
		asked = append(asked, name)
		return []netip.Addr{addr}, nil
	}
	s.Config = Config{
		Egress: egress, Host: netip.AddrFrom4([4]byte{10, 0, 2, 2}),
		Learn: func(a []netip.Addr) { learned = append(learned, a...) },
		Names: func(name string) []netip.Addr {
			if name == "web" {
				return []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 1, 1}), netip.MustParseAddr("fd00::1")}
			}
			return nil
		},
	}
	for _, tt := range []struct {
		name    string
		typ     dnsmessage.Type
		rcode   dnsmessage.RCode
		answers int
	}{
		{"example.org.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 1},
		{"www.example.org.", dnsmessage.TypeA, dnsmessage.RCodeRefused, 0},
		{"secret.evil.example.", dnsmessage.TypeTXT, dnsmessage.RCodeRefused, 0},
		{"Web.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 1},
		{"web.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, 1},
		{"host.docker.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 1},
		{"host.docker.internal.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, 0},
	} {
		if m := answerTo(t, s, network.UDP, query(t, tt.name, tt.typ)); m.RCode != tt.rcode || len(m.Answers) != tt.answers {
			t.Errorf("%s %s: %s with %d answers, want %s with %d", tt.name, tt.typ, m.RCode, len(m.Answers), tt.rcode, tt.answers)
		}
	}
	if diff := cmp.Diff([]string{"example.org."}, asked); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	if len(learned) != 1 || learned[0] != addr {
		t.Errorf("learned %v", learned)
	}
}
