package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/nettest"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// roleSupervisor is this program as one that is killed.
const roleSupervisor = "bridge-supervisor"

// roleAvailable is this program as one that asks whether it can have the bridge.
const roleAvailable = "bridge-available"

func TestMain(m *testing.M) {
	nettest.Main(m, map[string]func([]string) error{
		roleSupervisor: func([]string) error { return supervise() },
		roleAvailable:  func([]string) error { return New(netip.Prefix{}).Available() },
	})
}

// supervise attaches a VM with a process in its namespace, says so, and waits
// for its end.
func supervise() error {
	cfg := network.Config{ID: "aaaaaaaaaaaa", Name: "killed", Capabilities: tapVMM, Ports: []network.Port{tcpPort(80)}}
	a, err := New(netip.Prefix{}).Start(context.Background(), cfg)
	if err != nil {
		return err
	}
	if _, err := a.Launcher().Launch(context.Background(), vmm.Command{Path: "/bin/sleep", Args: []string{"1000"}}); err != nil {
		return err
	}
	fmt.Println("up")
	time.Sleep(time.Hour)
	return nil
}

var tapVMM = vmm.Capabilities{TapNetwork: true}

func TestConformance(t *testing.T) {
	nettest.Run(t, nettest.Suite{
		New:       func() network.Backend { return New(netip.Prefix{}) },
		Attach:    map[string]vmm.Capabilities{"tap": tapVMM},
		HostNames: true, KeepsSource: true, Ports6: true, GuestIPv6: true, Ping: true, Egress: true, MaxDatagram: 65507,
	})
}

// A user with the capabilities is not root: the lock and the settings are root's.
func TestCapabilitiesAreNotEnough(t *testing.T) {
	nettest.Need(t)
	for _, tt := range []struct {
		uid  uint32
		want bool
	}{{0, true}, {1000, false}} {
		cmd := exec.Command("/proc/self/exe", roleAvailable)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: tt.uid, NoSetGroups: true},
			AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN},
		}
		out, err := cmd.CombinedOutput()
		var ended *exec.ExitError
		if err != nil && !errors.As(err, &ended) {
			t.Skipf("no process of user %d can be started here: %v", tt.uid, err)
		}
		if (err == nil) != tt.want || err != nil && !strings.Contains(string(out), "it needs root") {
			t.Errorf("user %d: %v: %s", tt.uid, err, out)
		}
	}
}

func tcpPort(guest uint16) network.Port {
	return network.Port{HostIP: netip.IPv4Unspecified(), GuestPort: guest, Protocol: network.TCP}
}

// published is the first published port, at the host's own address.
func published(a network.Attachment) string {
	return net.JoinHostPort(nettest.HostAddr, fmt.Sprint(a.Ports()[0].HostPort))
}

func start(t *testing.T, cfg network.Config) network.Attachment {
	t.Helper()
	cfg.Capabilities = tapVMM
	return nettest.Start(t, New(netip.Prefix{}), cfg)
}

// hostState is what there is on the host: rules, interfaces, and bridges.
func hostState(t *testing.T) string {
	t.Helper()
	var all []string
	for _, args := range [][]string{{"nft", "list", "ruleset"}, {"ip", "-o", "link"}, {"ip", "route"}, {"ip", "-6", "route"}} {
		path, err := exec.LookPath(args[0])
		if err != nil {
			if path = "/usr/sbin/" + args[0]; !exists(path) {
				t.Skipf("%s is not installed (Debian packages nftables, iproute2)", args[0])
			}
		}
		out, err := exec.Command(path, args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
		all = append(all, string(out))
	}
	return strings.Join(all, "----\n")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// foreigners puts a table and a bridge of somebody else's on the host.
func foreigners(t *testing.T) {
	t.Helper()
	nft := exec.Command("/usr/sbin/nft", "-f", "-")
	nft.Stdin = strings.NewReader(`
table ip filter {
  chain FORWARD { type filter hook forward priority 0; policy accept;
    ip saddr 203.0.113.0/24 counter drop
  }
}
table inet fcvm-not {
  set s { type ipv4_addr;
    elements = { 192.0.2.9 }
  }
  chain vm-aaaaaaaaaaaa {
    ip daddr @s drop
  }
}
`)
	if out, err := nft.CombinedOutput(); err != nil {
		if !exists(nft.Path) {
			t.Skip("nft is not installed (Debian package nftables)")
		}
		t.Fatalf("%v: %s", err, out)
	}
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name = "docker0"
	alike := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	alike.Name = linkPrefix + "aaaaaaaaaaab" // named as a VM's, and none
	for _, l := range []netlink.Link{br, alike} {
		if err := netlink.LinkAdd(l); err != nil {
			t.Fatal(err)
		}
	}
	addr, _ := netlink.ParseAddr("172.17.0.1/16")
	if err := errors.Join(netlink.AddrAdd(br, addr), netlink.LinkSetUp(br)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = netlink.LinkDel(br)
		_ = netlink.LinkDel(alike)
		_ = exec.Command("/usr/sbin/nft", "flush ruleset").Run()
	})
}

// Whatever others have on the host is as before, and after the last VM so is
// everything.
func TestNothingIsLeft(t *testing.T) {
	nettest.Need(t)
	foreigners(t)
	before := hostState(t)
	t.Run("VMs", func(t *testing.T) {
		a := start(t, network.Config{Ports: []network.Port{tcpPort(80)}})
		b := start(t, network.Config{Isolated: true})
		if a.Ports()[0].HostPort == 0 || b.MTU() != 1500 {
			t.Errorf("ports %v, MTU %d", a.Ports(), b.MTU())
		}
		with := hostState(t)
		for _, want := range []string{"ip saddr 203.0.113.0/24 counter", "fcvm-not", "docker0"} {
			if !strings.Contains(with, want) {
				t.Errorf("no %q on the host while VMs run", want)
			}
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if !present() {
			t.Error("the bridge went before its last VM")
		}
	})
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("the host is not as before (-before +after):\n%s", diff)
	}
}

// A supervisor that is killed leaves nothing that the next command does not
// remove, and others' VMs run on.
func TestKilledSupervisor(t *testing.T) {
	nettest.Need(t)
	foreigners(t)
	before := hostState(t)
	for _, other := range []bool{false, true} {
		t.Run(fmt.Sprintf("another VM runs: %t", other), func(t *testing.T) {
			var l net.Listener
			var a network.Attachment
			if other {
				a = start(t, network.Config{Ports: []network.Port{tcpPort(80)}})
				l = nettest.NewGuest(t, a).Listen(t, "tcp4", ":80")
			}
			cmd := exec.Command("/proc/self/exe", roleSupervisor)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
				t.Fatalf("%q, %v", line, err)
			}
			if list, err := members(); err != nil || len(list) == 0 {
				t.Fatalf("VMs on the bridge: %v, %v", list, err)
			}
			_ = cmd.Process.Signal(syscall.SIGKILL)
			_ = cmd.Wait()
			if err := Reconcile(); err != nil {
				t.Fatal(err)
			}
			if text := hostState(t); strings.Contains(text, "killed") || strings.Contains(text, linkPrefix+"aaaaaaaaaaaa") || strings.Count(text, "vm-aaaaaaaaaaaa") != 1 {
				t.Errorf("left behind:\n%s", text)
			}
			if other {
				_, server := nettest.Way{Listener: l, Dial: func() (net.Conn, error) {
					return net.Dial("tcp4", published(a))
				}}.Connect(t)
				_ = server.Close()
			}
		})
		if diff := cmp.Diff(before, hostState(t)); diff != "" {
			t.Errorf("the host is not as before (-before +after):\n%s", diff)
		}
	}
}

// reach reports whether a connection comes about.
func reach(dial func() (net.Conn, error)) bool {
	c, err := dial()
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = io.ReadAll(c)
		_ = c.Close()
	}
	return err == nil
}

// greet ends every connection at once.
func greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.Close()
	}
}

func TestBetweenVMs(t *testing.T) {
	neighbour := nettest.Need(t)
	nettest.ServeNames(t, neighbour)
	web := start(t, network.Config{ID: "00000000000a", Name: "web", Ports: []network.Port{tcpPort(80)}})
	client := start(t, network.Config{ID: "00000000000b", Name: "client", IP: netip.MustParseAddr("10.201.7.7")})
	alone := start(t, network.Config{ID: "00000000000c", Name: "alone", Isolated: true, Ports: []network.Port{tcpPort(80)}})
	gWeb, gClient, gAlone := nettest.NewGuest(t, web), nettest.NewGuest(t, client), nettest.NewGuest(t, alone)
	for _, g := range []*nettest.Guest{gWeb, gClient, gAlone} {
		go greet(g.Listen(t, "tcp", ":80"))
	}
	address := func(a network.Attachment, i int) string { return a.(network.Addressed).Addresses()[i].String() }
	if got := address(client, 0); got != "10.201.7.7" {
		t.Errorf("--ip 10.201.7.7 got %s", got)
	}

	nettest.WantAnswer(t, gClient.Dial, "web.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, address(web, 0))
	nettest.WantAnswer(t, gClient.Dial, "WEB.fcvm.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, address(web, 1))
	if err := web.(network.Renamer).Rename("shop"); err != nil {
		t.Fatal(err)
	}
	nettest.WantAnswer(t, gClient.Dial, "shop.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, address(web, 0))
	nettest.WantAnswer(t, gClient.Dial, "web.", dnsmessage.TypeA, dnsmessage.RCodeNameError, "")
	nettest.WantAnswer(t, gAlone.Dial, "shop.", dnsmessage.TypeA, dnsmessage.RCodeNameError, "")

	published := func(a network.Attachment) string {
		return fmt.Sprintf("%s:%d", nettest.HostAddr, a.Ports()[0].HostPort)
	}
	for _, tt := range []struct {
		what string
		from *nettest.Sockets
		to   string
		want bool
	}{
		{"a VM", &gClient.Sockets, net.JoinHostPort(address(web, 0), "80"), true},
		{"a VM by IPv6", &gClient.Sockets, net.JoinHostPort(address(web, 1), "80"), true},
		{"a VM's published port", &gClient.Sockets, published(web), true},
		{"a VM's own published port", &gWeb.Sockets, published(web), true},
		{"an isolated VM's own published port", &gAlone.Sockets, published(alone), true},
		{"an isolated VM", &gClient.Sockets, net.JoinHostPort(address(alone, 0), "80"), false},
		{"an isolated VM by IPv6", &gClient.Sockets, net.JoinHostPort(address(alone, 1), "80"), false},
		{"a VM from an isolated one", &gAlone.Sockets, net.JoinHostPort(address(web, 0), "80"), false},
		{"a published port of an isolated VM from outside", neighbour, published(alone), true},
	} {
		if got := reach(func() (net.Conn, error) { return tt.from.Dial("tcp", tt.to) }); got != tt.want {
			t.Errorf("%s: reached: %t, want %t", tt.what, got, tt.want)
		}
	}
}

// Forwarding is switched on where it is off, said, and left on; where it is on,
// nothing is done or said.
func TestForwarding(t *testing.T) {
	nettest.Need(t)
	for _, tt := range []struct {
		before string
		said   bool
	}{{"0", true}, {"1", false}} {
		settings := []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"}
		for _, name := range settings {
			if err := writeSysctl(name, tt.before); err != nil {
				t.Fatal(err)
			}
		}
		var said []string
		a := start(t, network.Config{Say: func(line string) { said = append(said, line) }})
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if !sysctlOn(settings[0]) {
			t.Error("net.ipv4.ip_forward is off after a VM")
		}
		text := strings.Join(said, "\n")
		if (len(said) > 0) != tt.said || tt.said && (!strings.Contains(text, "net.ipv4.ip_forward to 1") || !strings.Contains(text, "net.ipv6.conf")) {
			t.Errorf("forwarding was %s: said %q", tt.before, said)
		}
	}
}

func TestAddresses(t *testing.T) {
	nettest.Need(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	taken := netip.MustParseAddrPort(l.Addr().String())
	_, err = New(netip.MustParsePrefix("198.51.100.0/25")).Start(t.Context(), network.Config{ID: "00000000000d", Name: "x", Capabilities: tapVMM})
	wantError(t, err, network.ErrCollision, "198.51.100.0/25", "198.51.100.0/24", "wan0", "--subnet")
	if present() {
		t.Error("a VM that did not start left the bridge")
	}

	first := start(t, network.Config{ID: "00000000000e", Name: "first"})
	addr := first.(network.Addressed).Addresses()[0]
	for _, tt := range []struct {
		subnet string
		cfg    network.Config
		is     error
		words  []string
	}{
		{"", network.Config{IP: addr}, network.ErrCollision, []string{addr.String(), "VM first"}},
		{"", network.Config{IP: netip.MustParseAddr("10.201.0.1")}, network.ErrCollision, []string{"the host"}},
		{"", network.Config{IP: netip.MustParseAddr("10.9.0.1")}, vm.ErrInvalid, []string{"10.9.0.1", DefaultSubnet}},
		{"", network.Config{IP: netip.MustParseAddr("10.201.255.255")}, vm.ErrInvalid, nil},
		{"", network.Config{IP: netip.MustParseAddr("fd00::1")}, vm.ErrInvalid, []string{"fd00::1", "IPv4"}},
		{"10.99.0.0/24", network.Config{}, network.ErrCollision, []string{"10.99.0.0/24", DefaultSubnet}},
		{"", network.Config{Ports: []network.Port{{HostIP: taken.Addr(), HostPort: taken.Port(), GuestPort: 1, Protocol: network.TCP}}}, network.ErrPortTaken, []string{fmt.Sprint(os.Getpid())}},
		{"", network.Config{Ports: []network.Port{{HostIP: netip.MustParseAddr("203.0.113.1"), GuestPort: 1, Protocol: network.TCP}}}, syscall.EADDRNOTAVAIL, []string{"203.0.113.1"}},
	} {
		var p netip.Prefix
		if tt.subnet != "" {
			p = netip.MustParsePrefix(tt.subnet)
		}
		tt.cfg.ID, tt.cfg.Name, tt.cfg.Capabilities = "00000000000f", "second", tapVMM
		_, err := New(p).Start(t.Context(), tt.cfg)
		wantError(t, err, tt.is, tt.words...)
	}
	if list, err := members(); err != nil || len(list) != 1 {
		t.Errorf("VMs on the bridge: %v, %v", list, err)
	}
}

func wantError(t *testing.T, err, is error, words ...string) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Errorf("got %v, want %v", err, is)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// Rules of others that drop what they do not know are found and named.
func TestBlocked(t *testing.T) {
	nettest.Need(t)
	foreigners(t)
	if why := New(netip.Prefix{}).Blocked(); why != "" {
		t.Errorf("blocked: %s", why)
	}
	add := func(text string) {
		t.Helper()
		cmd := exec.Command("/usr/sbin/nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	add("add chain ip filter FORWARD { policy drop; }")
	if why := New(netip.Prefix{}).Blocked(); !strings.Contains(why, "FORWARD") || !strings.Contains(why, "DOCKER-USER") {
		t.Errorf("blocked: %q", why)
	}
	add(`add rule ip filter FORWARD iifname "fcvmbr0" accept`)
	if why := New(netip.Prefix{}).Blocked(); why != "" {
		t.Errorf("blocked, though the bridge is allowed: %s", why)
	}
	// As firewalld has it: what no rule accepts is rejected at the end.
	add("add table inet firewalld")
	add("add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }")
	add("add rule inet firewalld filter_FORWARD ct state established,related accept")
	add("add rule inet firewalld filter_FORWARD ct state invalid drop")
	if why := New(netip.Prefix{}).Blocked(); why != "" {
		t.Errorf("blocked by a chain that accepts the rest: %s", why)
	}
	add("add rule inet firewalld filter_FORWARD counter reject with icmpx type admin-prohibited")
	if why := New(netip.Prefix{}).Blocked(); !strings.Contains(why, "filter_FORWARD") || !strings.Contains(why, "firewall-cmd") {
		t.Errorf("blocked: %q", why)
	}
	add("add chain inet firewalld filter_FWD_trusted")
	add(`add rule inet firewalld filter_FWD_trusted iifname "fcvmbr0" accept`)
	if why := New(netip.Prefix{}).Blocked(); why != "" {
		t.Errorf("blocked, though the bridge is in a zone: %s", why)
	}
}

func TestParseSubnet(t *testing.T) {
	for _, s := range []string{"x", "10.0.0.1", "10.0.0.0/30", "1.0.0.0/7", "10.0.0.0/16", "10.0.2.0/24", "fd00::/64", "127.0.0.0/16", "169.254.0.0/16"} {
		if p, err := ParseSubnet(s); err == nil {
			t.Errorf("%s: %s", s, p)
		}
	}
	if p, err := ParseSubnet("192.168.55.7/24"); err != nil || p.String() != "192.168.55.0/24" {
		t.Errorf("%s, %v", p, err)
	}
}

func FuzzAlias(f *testing.F) {
	f.Add("fcvm id=0123456789ab ip=10.201.0.2 name=web")
	f.Fuzz(func(t *testing.T, alias string) {
		l := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Alias: alias}}
		if m, ok := parseAlias(l); ok && !m.ip.IsValid() {
			t.Errorf("%q has no address", alias)
		}
	})
}
