package agent

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// fakeKernel is what a test cannot change: its clock and its generator are the
// host's.
type fakeKernel struct {
	mu      sync.Mutex
	steps   []time.Duration // ahead of the host's clock
	shifts  []time.Duration
	entropy [][]byte
	fail    error
}

func (k *fakeKernel) setClock(at time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.steps = append(k.steps, time.Until(at))
	return nil
}

func (k *fakeKernel) shiftClock(d time.Duration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shifts = append(k.shifts, d)
	return nil
}

func (k *fakeKernel) reseed(entropy []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.entropy = append(k.entropy, bytes.Clone(entropy))
	return k.fail
}

// restorable gives a guest a kernel of a test's.
func (g *guest) restorable() *fakeKernel {
	k := new(fakeKernel)
	g.agent.restorer.reseed = k.reseed
	g.agent.clock.set, g.agent.clock.shift = k.setClock, k.shiftClock
	return k
}

const (
	oldID = "00000000000000000000000000000001"
	newID = "0123456789abcdef0123456789abcdef"
)

// oldNetwork is a guest's before it is restored.
func oldNetwork() *agentapi.Network {
	return &agentapi.Network{
		Interface: "eth0", Address: "10.0.2.15/24", Gateway: "10.0.2.2", DNS: []string{"10.0.2.3"}, MTU: 9000,
		Address6: "fd00:2::15/64", Gateway6: "fd00:2::2",
	}
}

// newOriginal is a guest whose container runs, with a name that it has given
// itself, in namespaces of the test's own.
func newOriginal(t *testing.T) (*guest, *fakeKernel) {
	t.Helper()
	newLink(t)
	if err := os.MkdirAll("/run/log/journal/"+oldID, 0o755); err != nil {
		t.Fatal(err)
	}
	plan := &agentapi.Plan{
		Version: agentapi.Version, Hostname: "original", Network: oldNetwork(), Hosts: []string{"10.1.1.1\tdb original-db"},
		Container: agentapi.Container{Args: []string{
			"unshare", "--uts", "sh", "-c", "hostname renamed; echo ready >/run/ready; exec sleep 1000",
		}},
	}
	writeText(t, "/etc/machine-id", oldID+"\n")
	writeText(t, "/run/machine-id", oldID+"\n")
	if err := configure(plan); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, serialCarrier)
	g.inside = true
	k := g.restorable()
	g.agent.state.up()
	files := g.agent.container.engine.userFiles(runtimeID)
	for name, text := range map[string]string{
		"hosts": hostsFile(plan) + "10.7.7.7 renamed\n", "hostname": "original", "resolv.conf": resolvConf(plan.Network),
	} {
		writeText(t, files+"/"+name, text)
	}
	if err := g.client.SendPlan(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	g.agent.state.ready()
	pid := g.start(t)
	t.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		eventually(t, "the end of the container", func() bool { return g.agent.state.status().Exit != nil })
	})
	eventually(t, "the container", func() bool { _, err := os.Stat("/run/ready"); return err == nil })
	return g, k
}

func restoreRequest() agentapi.RestoreRequest {
	n := oldNetwork()
	n.MTU, n.DNS, n.Search, n.Address6, n.Gateway6 = 1500, []string{"10.0.2.4"}, []string{"example"}, "", ""
	return agentapi.RestoreRequest{
		ClockSync: agentapi.ClockSync{Epoch: "one"}, Entropy: bytes.Repeat([]byte{7}, 64), Hostname: "clone", MachineID: newID, Network: n,
		Hosts: []string{"10.1.1.2\tcache", "10.1.1.1\tdb original-db"}, Env: []string{"GIVEN=a b", "OWN=given"},
	}
}

func TestRestore(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	g, k := newOriginal(t)
	stay := connect(t, listen(t, "127.0.0.1"))
	announced := listenARP(t)
	learnNeighbours(t)

	if _, err := g.client.Restore(t.Context(), restoreRequest(), nil); err != nil {
		t.Fatal(err)
	}
	if len(k.steps) != 1 || k.steps[0].Abs() > patience { // the request's way; what it is off by then is a matter of shifts
		t.Errorf("the clock was set to what it is, but for %v", k.steps)
	}
	if len(k.entropy) != 1 || !bytes.Equal(k.entropy[0], bytes.Repeat([]byte{7}, 64)) {
		t.Errorf("entropy: %x", k.entropy)
	}
	wantIdentity(t, g)
	wantNetwork(t)
	if err := announced(); err != nil {
		t.Error(err)
	}
	if _, err := stay.far.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := stay.near.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	// The same again does nothing.
	writeText(t, "/etc/hostname", "changed since\n")
	if _, err := g.client.Restore(t.Context(), restoreRequest(), nil); err != nil {
		t.Error(err)
	}
	wantText(t, "/etc/hostname", "changed since\n")
	if len(k.steps) != 1 || len(k.entropy) != 1 {
		t.Errorf("the clock was set %d times, and the generator %d times", len(k.steps), len(k.entropy))
	}
	testSecondRestore(t, g, k)
}

// testSecondRestore is a clone of the clone.
func testSecondRestore(t *testing.T, g *guest, k *fakeKernel) {
	again := agentapi.RestoreRequest{
		ClockSync: agentapi.ClockSync{Epoch: "two"}, Entropy: make([]byte, agentapi.MinEntropy), Hostname: "second",
		Network: oldNetwork(), Env: []string{"GIVEN=more"},
	}
	if _, err := g.client.Restore(t.Context(), again, nil); err != nil {
		t.Fatal(err)
	}
	if r := run(t, g.exec(t, sh(`echo "$GIVEN|$OWN|$HOSTNAME"; hostname`)), nil); r.out != "more|given|second\nsecond\n" && r.out != "more|given|second\n"+hostname(t)+"\n" {
		t.Errorf("%+v", r)
	}
	wantText(t, "/etc/machine-id", newID+"\n")
	wantText(t, "/etc/resolv.conf", "nameserver 10.0.2.3\n")
	l, err := netlink.LinkByName("eth0")
	if err != nil || l.Attrs().MTU != 1500 {
		t.Errorf("MTU %d, %v: it has grown", l.Attrs().MTU, err)
	}
	if found, err := netlink.AddrList(l, netlink.FAMILY_V6); err != nil || !strings.Contains(fmt.Sprint(found), "fd00:2::15") {
		t.Errorf("IPv6 addresses %v, %v", found, err)
	}
	if len(k.entropy) != 2 {
		t.Errorf("the generator was reseeded %d times", len(k.entropy))
	}
}

func hostname(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// wantIdentity looks at everything that names the machine.
func wantIdentity(t *testing.T, g *guest) {
	t.Helper()
	const local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.1.1.1\tdb original-db\n" +
		"10.0.2.15\tclone\n10.0.2.2\thost.containers.internal\n"
	const resolv = "nameserver 10.0.2.4\nsearch example\n"
	files := g.agent.container.engine.userFiles(runtimeID)
	for path, want := range map[string]string{
		"/etc/hostname": "clone\n", "/etc/hosts": "10.1.1.2\tcache\n" + local, "/etc/resolv.conf": resolv,
		"/etc/machine-id": newID + "\n", "/run/machine-id": newID + "\n",
		files + "/hostname": "clone", files + "/hosts": "10.1.1.2\tcache\n" + local + "10.7.7.7 clone\n", files + "/resolv.conf": resolv,
	} {
		wantText(t, path, want)
	}
	if got := hostname(t); got != "clone" {
		t.Errorf("the guest's hostname is %s", got)
	}
	pid, err := g.agent.container.runningPID()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if name, err := hostnameIn(fd, ""); err != nil || name != "clone" {
		t.Errorf("the container's hostname is %s, %v", name, err)
	}
	if target, err := os.Readlink("/run/log/journal/" + newID); err != nil || target != oldID {
		t.Errorf("the journal: %s, %v", target, err)
	}
	if r := run(t, g.exec(t, sh(`echo "$GIVEN|$OWN|$HOSTNAME"`)), nil); r.out != "a b|given|clone\n" {
		t.Errorf("environment of a command: %+v", r)
	}
	req := sh(`echo "$GIVEN|$OWN"`)
	req.Env = []string{"OWN=asked"}
	if r := run(t, g.exec(t, req), nil); r.out != "a b|asked\n" {
		t.Errorf("environment of a command that brings its own: %+v", r)
	}
}

func learnNeighbours(t *testing.T) {
	t.Helper()
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for ip, state := range map[string]int{
		"10.0.2.2": netlink.NUD_REACHABLE, "10.0.2.8": netlink.NUD_STALE, "10.0.2.9": netlink.NUD_PERMANENT, "fd00:2::2": netlink.NUD_REACHABLE,
	} {
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, IP: net.ParseIP(ip), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: state,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// wantNetwork looks at the link of a guest that has another network now.
func wantNetwork(t *testing.T) {
	t.Helper()
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if l.Attrs().MTU != 1500 {
		t.Errorf("MTU %d", l.Attrs().MTU)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil || !strings.Contains(fmt.Sprint(addrs), "10.0.2.15/24") || strings.Contains(fmt.Sprint(addrs), "fd00") {
		t.Errorf("addresses: %v, %v", addrs, err)
	}
	routes, err := netlink.RouteList(l, netlink.FAMILY_ALL)
	if err != nil || !strings.Contains(fmt.Sprint(routes), "Gw: 10.0.2.2 ") || strings.Contains(fmt.Sprint(routes), "fd00") {
		t.Errorf("routes: %v, %v", routes, err)
	}
	neighbours, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var entered bool
	for _, n := range neighbours {
		entered = entered || n.IP.String() == "10.0.2.9"
		if n.IP.String() == "10.0.2.2" || n.IP.String() == "10.0.2.8" {
			t.Errorf("the neighbour %s is still known", n.IP)
		}
	}
	if !entered {
		t.Error("a neighbour that somebody has entered is gone")
	}
}

// listenARP returns a function that waits for the guest's announcement at the
// other end of its link.
func listenARP(t *testing.T) (wait func() error) {
	t.Helper()
	l, err := netlink.LinkByName("peer0")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(bigEndian(unix.ETH_P_ARP)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ARP), Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	return func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		want := "0001080006040001" + hex.EncodeToString(eth0.Attrs().HardwareAddr) + "0a00020f" + "000000000000" + "0a00020f"
		for buf := make([]byte, 2000); ; {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return fmt.Errorf("no announcement: %w", err)
			}
			if hex.EncodeToString(buf[:min(n, 28)]) == want {
				return nil
			}
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	k := g.restorable()
	ok := func() agentapi.RestoreRequest {
		return agentapi.RestoreRequest{ClockSync: agentapi.ClockSync{Epoch: "e"}, Entropy: make([]byte, agentapi.MinEntropy)}
	}
	refused := func(want string, change func(*agentapi.RestoreRequest)) {
		t.Helper()
		req := ok()
		change(&req)
		_, err := g.client.Restore(t.Context(), req, nil)
		var e *agentapi.Error
		if !errors.As(err, &e) || !strings.Contains(e.Message, want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	refused("not up yet", func(*agentapi.RestoreRequest) {})
	k.fail = errors.New("no entropy today")
	g.agent.state.up()
	refused("no entropy today", func(*agentapi.RestoreRequest) {})
	for want, change := range map[string]func(*agentapi.RestoreRequest){
		"epoch of 0 bytes":       func(r *agentapi.RestoreRequest) { r.Epoch = "" },
		"epoch of 65 bytes":      func(r *agentapi.RestoreRequest) { r.Epoch = strings.Repeat("e", 65) },
		"31 bytes of entropy":    func(r *agentapi.RestoreRequest) { r.Entropy = make([]byte, 31) },
		"4097 bytes of entropy":  func(r *agentapi.RestoreRequest) { r.Entropy = make([]byte, 4097) },
		`machine id "x"`:         func(r *agentapi.RestoreRequest) { r.MachineID = "x" },
		`hostname "a b"`:         func(r *agentapi.RestoreRequest) { r.Hostname = "a b" },
		"no line for hosts":      func(r *agentapi.RestoreRequest) { r.Hosts = []string{"a\nb"} },
		"no environment variabl": func(r *agentapi.RestoreRequest) { r.Env = []string{"A"} },
	} {
		refused(want, change)
	}
}

func TestRenameHost(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.2.15\told\n":                 "10.0.2.15\tnew\n",
		"10.0.2.15  old old.example\tx":    "10.0.2.15  new old.example\tx",
		"old old":                          "old new", // an address, whatever it looks like
		"1.2.3.4 gold older # but not old": "1.2.3.4 gold older # but not old",
		"1.2.3.4 a old# old\n":             "1.2.3.4 a new# old\n",
		"\n":                               "\n",
		"":                                 "",
		" \t1.2.3.4 elder":                 " \t1.2.3.4 new",
	} {
		if got := renameHost(in, []string{"old", "elder"}, "new"); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// What comes late, or twice, does not change what a later request has set.
func TestWallClock(t *testing.T) {
	k := new(fakeKernel)
	c := wallClock{set: k.setClock, shift: k.shiftClock}
	sync := func(epoch string, off time.Duration) {
		t.Helper()
		if err := c.sync(&agentapi.ClockSync{Epoch: epoch, Time: time.Now().Add(off)}, time.Now(), false); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(seq uint64, shift, want time.Duration) {
		t.Helper()
		a, err := c.ask("a", agentapi.ClockRequest{Seq: seq, Shift: shift})
		if err != nil || a.Shift != want || a.Seq != seq || time.Since(a.Time).Abs() > time.Second {
			t.Errorf("request %d: %+v, %v; want a shift of %s", seq, a, err, want)
		}
	}
	sync("a", time.Hour)
	ask(1, 0, 0)
	ask(3, time.Second, time.Second)
	ask(2, time.Minute, time.Second)
	ask(4, time.Second, time.Second)
	sync("a", 0)
	ask(5, -2*time.Second, -2*time.Second)
	if len(k.steps) != 1 || k.steps[0].Round(time.Minute) != time.Hour {
		t.Errorf("the clock was set to %s", k.steps)
	}
	if want := []time.Duration{time.Second, -3 * time.Second}; !slices.Equal(k.shifts, want) {
		t.Errorf("the clock was shifted by %s, want %s", k.shifts, want)
	}
	sync("b", 0)
	if _, err := c.ask("a", agentapi.ClockRequest{Seq: 9, Shift: time.Hour}); !errors.Is(err, errOldEpoch) || len(k.steps) != 2 {
		t.Errorf("%v; %s", err, k.steps)
	}
}

// A clock that is behind is set, by what the request was on its way more; none is
// ever set back.
func TestWallClockForward(t *testing.T) {
	const slack = 5 * time.Second // of a busy host
	for name, tc := range map[string]struct {
		ahead, late time.Duration // the host's clock, and the request
		set         bool
	}{
		"behind":                {ahead: time.Hour, set: true},
		"behind, and late":      {ahead: time.Hour, late: time.Minute, set: true},
		"right":                 {},
		"ahead":                 {ahead: -time.Hour},
		"a little behind":       {ahead: clockBehind / 2},
		"a late one, passed by": {ahead: -time.Minute, late: time.Second},
	} {
		k := new(fakeKernel)
		c := wallClock{set: k.setClock, shift: k.shiftClock}
		now := time.Now()
		if err := c.sync(&agentapi.ClockSync{Epoch: "e", Time: now.Add(tc.ahead).Round(0)}, now.Add(-tc.late), true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if (len(k.steps) > 0) != tc.set || tc.set && (k.steps[0]-tc.ahead-tc.late).Abs() > slack {
			t.Errorf("%s: set to %v", name, k.steps)
		}
	}
}

func TestSetClock(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	k := g.restorable()
	worst, err := g.client.SetClock(t.Context())
	if err != nil || worst > 50*time.Millisecond {
		t.Errorf("%s at worst, %v", worst, err)
	}
	for _, step := range k.steps {
		if step < 0 {
			t.Errorf("set back by %s", -step)
		}
	}
}
