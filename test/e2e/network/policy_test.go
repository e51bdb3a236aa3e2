package network

import (
	"net"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/network/bridge"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/test/e2e/network/netpeer"
)

// served has a program of the host's answer guests by its name, and returns its
// port.
func served(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go netpeer.Serve(l, name)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// refused fails the test if the guest gets an answer.
func (m *machine) refused(t *testing.T, addr string) {
	t.Helper()
	if out, err := m.tryCall(t, "name", addr); err == nil {
		t.Errorf("%s reaches %s, which is %q", m.name, addr, out)
	}
}

func (m *machine) reaches(t *testing.T, addr, name string) {
	t.Helper()
	if got := m.call(t, "name", addr); got != name {
		t.Errorf("%s is %q for %s, want %q", addr, got, m.name, name)
	}
}

// testEgress keeps guests to what --egress names, by address and by name, while
// their own ports stay open. The other VM is none of it.
func (s *suite) testEgress(t *testing.T, other *machine) {
	neighbour, host := s.serveNeighbour(t), served(t, "host")
	_, port, _ := net.SplitHostPort(neighbour)
	outside := strings.TrimSuffix(nettest.OutsideName, ".")

	address := s.start(t, "address", "-p", "0:"+peerPort, "--egress", nettest.NeighbourAddr)
	address.reaches(t, neighbour, "neighbour")
	address.refused(t, "host.containers.internal:"+host)
	address.refused(t, net.JoinHostPort(nettest.HostAddr, host))
	if got, err := dialHost("tcp4", "127.0.0.1:"+address.port(t, peerPort+"/tcp")).Name(); err != nil || got != "address" {
		t.Errorf("its port is served by %q, %v", got, err)
	}

	name := s.start(t, "name", "--egress", outside)
	name.reaches(t, neighbour, "neighbour") // the name was looked up at the start
	name.reaches(t, net.JoinHostPort(outside, port), "neighbour")
	name.refused(t, "host.containers.internal:"+host)

	// 10.0.0.0/8 holds the gateway and, on the bridge, the other VMs: it opens neither.
	wide := s.start(t, "wide", "--egress", "10.0.0.0/8")
	wide.refused(t, neighbour)
	wide.refused(t, "host.containers.internal:"+host)
	if s.between {
		wide.refused(t, other.name+":"+peerPort)
	}
}

// testBridge is what only VMs on a bridge have: fixed addresses, and others that
// they may or may not reach.
func (s *suite) testBridge(t *testing.T, other *machine) {
	fixed := strings.Replace(bridge.DefaultSubnet, "0.0/16", "77.7", 1)
	m := s.start(t, "fixed", "--ip", fixed)
	other.reaches(t, net.JoinHostPort(fixed, peerPort), "fixed")
	if _, err := s.try(t, "run", "--network", "bridge", "--name", "late", "--ip", fixed, s.image, "name", "x"); err == nil || !strings.Contains(err.Error(), "fixed") {
		t.Errorf("an address that another VM has: %v", err)
	}
	lonely := s.start(t, "lonely", "--isolated")
	lonely.refused(t, net.JoinHostPort(fixed, peerPort))
	m.refused(t, "lonely:"+peerPort)
	lonely.reaches(t, s.serveNeighbour(t), "neighbour")
}
