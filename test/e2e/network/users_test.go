package network

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/fcvm/fcvm/internal/network/nettest"
)

// Three data directories, root's with the bridge, an ordinary user's, and
// another one of root's with the same bridge: nobody sees, hinders or cleans up
// after the others, even where a supervisor was killed.
func TestUsers(t *testing.T) {
	nettest.Need(t)
	if os.Getenv(envRealRoot) == "" {
		t.Skip("only root can be two users")
	}
	image := peerImage(t)
	const forward = "/proc/sys/net/ipv4/ip_forward"
	if err := os.WriteFile(forward, []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	root, user, other := newAccount(t, false), newAccount(t, true), newAccount(t, false)
	all := []*machine{
		root.start(t, image, "bridge", "twin", "-p", "0:"+peerPort),
		user.start(t, image, "auto", "twin", "-p", "0:"+peerPort),
		other.start(t, image, "bridge", "third", "-p", "0:"+peerPort),
	}
	served := make(map[*machine]string)
	for _, m := range all {
		served[m] = net.JoinHostPort("127.0.0.1", m.port(t, peerPort+"/tcp"))
	}
	check := func(alive ...*machine) {
		t.Helper()
		for _, m := range alive {
			if got, err := dialHost("tcp4", served[m]).Name(); err != nil || got != m.name {
				t.Errorf("the port of %s is served by %q, %v", m.name, got, err)
			}
			if got := m.run(t, "ls", "--format", "{{.Name}}"); got != m.name {
				t.Errorf("the owner of %s sees the VMs %q", m.name, got)
			}
		}
	}
	check(all...)
	if got := all[1].run(t, "inspect", "--format", "{{.Resolved.Network}}", "twin"); got != "usernet" {
		t.Errorf("an ordinary user's VM has the network %s", got)
	}
	if os.Getenv(envDriver) == "qemu" {
		if got := all[1].netdev(t); !strings.HasPrefix(got, "tap,") {
			t.Errorf("an ordinary user's VM is connected by %s", got)
		}
	}
	for i, m := range all { // the first one needed it
		if notes := m.run(t, "inspect", "--format", "{{.Resolved.NetworkNotes}}", m.name); strings.Contains(notes, "ip_forward") != (i == 0) {
			t.Errorf("the record of %s says %q", m.name, notes)
		}
	}
	// A port that one has is taken for all.
	_, taken, _ := net.SplitHostPort(served[all[0]])
	for _, a := range []account{user, other} {
		if _, err := a.try(t, "run", "--network", "auto", "-p", taken+":1", image, "name", "x"); err == nil || !strings.Contains(err.Error(), "port is already in use") {
			t.Errorf("the port of another user's VM: %v", err)
		}
	}
	// Root's supervisor is killed. Its VM goes with the next command of anybody
	// who is root; the others' stay.
	pid, err := strconv.Atoi(all[0].run(t, "inspect", "--format", "{{.Supervisor.PID}}", "twin"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	check(all[1:]...)
	if got := root.run(t, "ls", "-a", "--format", "{{.Name}} {{.Status}}"); !strings.HasPrefix(got, "twin ") || strings.Contains(got, "running") {
		t.Errorf("the VM whose supervisor was killed is %q", got)
	}
	check(all[1:]...)
	if _, err := net.InterfaceByName("fcvmbr0"); err != nil {
		t.Errorf("the bridge that a VM still uses: %v", err)
	}
	other.run(t, "rm", "-f", "third")
	check(all[1])
	if _, err := net.InterfaceByName("fcvmbr0"); err == nil {
		t.Error("the bridge is there after the last VM on it")
	}
}

// Where user namespaces are forbidden, usernet still carries QEMU's VMs, by a socket:
// nothing is needed of the host. A snapshot of such a VM starts on a tap as well.
func TestWithoutUserNamespaces(t *testing.T) {
	neighbour := nettest.Need(t)
	if os.Getenv(envDriver) != "qemu" {
		t.Skip("Firecracker takes a tap only, which takes a namespace")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("setpriv is not installed (Debian package util-linux)")
	}
	s := suite{account: newAccount(t, true), backend: "usernet", image: peerImage(t), neighbour: neighbour, maxDatagram: 65507}
	s.namespaceless = true
	if out, err := s.try(t, "setup", "preflight"); err != nil || !strings.Contains(out, "user namespaces") {
		t.Errorf("preflight: %v\n%s", err, out)
	}
	m := s.start(t, "plain", "-p", "0:"+peerPort)
	m.call(t, "bulk", s.serveNeighbour(t), bulk(t)/10)
	if got, err := dialHost("tcp4", net.JoinHostPort("127.0.0.1", m.port(t, peerPort+"/tcp"))).Name(); err != nil || got != "plain" {
		t.Errorf("the port is served by %q, %v", got, err)
	}
	if got := m.netdev(t); !strings.HasPrefix(got, "socket,") {
		t.Errorf("the VM's network is %s", got)
	}
	m.run(t, "snapshot", "create", "--name", "by-socket", "plain")
	free := s.account
	free.namespaceless = false
	clone := &machine{free, "tapped"}
	clone.run(t, "clone", "-d", "--network", "usernet", "--name", "tapped", "-p", "0:"+peerPort, "--snapshot", "by-socket")
	t.Cleanup(func() {
		_, _ = free.try(t, "rm", "-f", "tapped")
		_, _ = free.try(t, "snapshot", "rm", "-f", "by-socket")
	})
	if got := clone.netdev(t); !strings.HasPrefix(got, "tap,") {
		t.Errorf("the clone's network is %s", got)
	}
	clone.call(t, "bulk", s.serveNeighbour(t), bulk(t)/10)
	if got, err := dialHost("tcp4", net.JoinHostPort("127.0.0.1", clone.port(t, peerPort+"/tcp"))).Name(); err != nil || got != "plain" {
		t.Errorf("the clone's port is served by %q, %v", got, err)
	}
}

// netdev is how QEMU is connected, as it was told.
func (m *machine) netdev(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + m.run(t, "inspect", "--format", "{{.Resolved.VMM.PID}}", m.name) + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Split(string(b), "\x00")
	return args[slices.Index(args, "-netdev")+1]
}
