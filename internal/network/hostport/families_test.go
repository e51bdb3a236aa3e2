package hostport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network"
)

// inScratchHost runs f on a host of its own, without interfaces other than the
// loopback, which has no address.
func inScratchHost(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ours, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ours.Close() }()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("network namespaces cannot be made here: %v", err)
	}
	defer func() {
		if err := unix.Setns(int(ours.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

func loopbackUp(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !hasIPv6() {
		t.Skip("this host has no IPv6")
	}
}

func listen(t *testing.T, protocol, addr string) {
	t.Helper()
	var c interface{ Close() error }
	var err error
	if strings.HasPrefix(protocol, network.TCP) {
		c, err = net.Listen(protocol, addr)
	} else {
		c, err = net.ListenPacket(protocol, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
}

// hosts are where ports are open.
func hosts(list []*Opened) []string {
	var all []string
	for _, p := range Ports(list) {
		all = append(all, p.HostAddr().String())
	}
	return all
}

// Without a host address a port is open in both families under one number, which is
// looked for until it is free in both.
func TestOpenFamilies(t *testing.T) {
	const first = 40000
	for _, protocol := range []string{network.TCP, network.UDP} {
		inScratchHost(t, func() {
			loopbackUp(t)
			if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "%d %d", first, first+3), 0); err != nil {
				t.Fatal(err)
			}
			for _, p := range []int{first, first + 1, first + 3} {
				listen(t, protocol+"6", fmt.Sprintf("[::1]:%d", p))
			}
			list, err := Open(t.Context(), network.Port{GuestPort: 80, Protocol: protocol})
			defer CloseAll(list)
			if want := []string{"0.0.0.0:40002", "[::]:40002"}; err != nil || !slices.Equal(hosts(list), want) {
				t.Errorf("%s: open on %v, %v; want %v", protocol, hosts(list), err, want)
			}
			of := network.Port{HostPort: first, HostPortEnd: first + 8, GuestPort: 81, Protocol: protocol}
			more, err := Open(t.Context(), of)
			defer CloseAll(more)
			if want := []string{"0.0.0.0:40004", "[::]:40004"}; err != nil || !slices.Equal(hosts(more), want) {
				t.Errorf("%s: %s is open on %v, %v; want %v", protocol, of, hosts(more), err, want)
			}
			for _, p := range []int{first, first + 1, first + 3} { // those that were tried are free again
				listen(t, protocol+"4", fmt.Sprintf("0.0.0.0:%d", p))
			}
		})
	}
}

// A port that is taken in either family is taken; it is said in which, and by whom.
func TestTakenInOneFamily(t *testing.T) {
	us := fmt.Sprintf("(process %d)", os.Getpid())
	for _, tt := range []struct{ protocol, taken, want string }{
		{network.TCP, "127.0.0.1", "0.0.0.0:8080->80/tcp"},
		{network.TCP, "::1", "[::]:8080->80/tcp"},
		{network.UDP, "127.0.0.1", "0.0.0.0:8080->80/udp"},
		{network.UDP, "::1", "[::]:8080->80/udp"},
	} {
		inScratchHost(t, func() {
			loopbackUp(t)
			listen(t, tt.protocol, net.JoinHostPort(tt.taken, "8080"))
			list, err := Open(t.Context(), network.Port{HostPort: 8080, GuestPort: 80, Protocol: tt.protocol})
			CloseAll(list)
			if !errors.Is(err, network.ErrPortTaken) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s on %s: %v; want %q", tt.protocol, tt.taken, err, tt.want)
			}
			free := network.Port{HostIP: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80, Protocol: tt.protocol}
			if tt.taken == "::1" {
				list, err := Open(t.Context(), free)
				if err != nil {
					t.Errorf("IPv4 after that: %v", err)
				}
				CloseAll(list)
			}
		})
	}
	// The test's own namespace is the one of which /proc/net speaks.
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	defer func() { _ = l.Close() }()
	p := network.Port{HostPort: netip.MustParseAddrPort(l.Addr().String()).Port(), GuestPort: 80, Protocol: network.TCP}
	if _, err := Open(t.Context(), p); !errors.Is(err, network.ErrPortTaken) || !strings.Contains(err.Error(), us) {
		t.Errorf("%v; want %q", err, us)
	}
}

// A host without IPv6 has the port in IPv4 alone.
func TestOpenWithoutIPv6(t *testing.T) {
	for _, protocol := range []string{network.TCP, network.UDP} {
		inScratchHost(t, func() {
			list, err := Open(t.Context(), network.Port{HostPort: 8080, GuestPort: 80, Protocol: protocol})
			defer CloseAll(list)
			if want := []string{"0.0.0.0:8080"}; err != nil || !slices.Equal(hosts(list), want) {
				t.Errorf("%s: open on %v, %v; want %v", protocol, hosts(list), err, want)
			}
		})
	}
}
