package vmmtest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest/testapi"
)

const testTap = "fcvmtest0"

// testSocketNetwork reads the guest's frames from a socket, and those of a
// machine that was restored with another one.
func (s *suite) testSocketNetwork(t *testing.T) {
	if !s.caps.SockNetwork {
		t.Skip("this driver takes no socket for its network")
	}
	const mtu = 9000
	wire, theirs := newWire(t)
	cfg := s.config(t)
	cfg.Net = &vmm.Net{MAC: vmm.GuestMAC, MTU: mtu, Socket: theirs}
	r := s.boot(t, cfg)
	_ = theirs.Close()
	r.checkMAC(t)
	r.mustCall(t, http.MethodPost, testapi.PathLink, nil, nil)
	waitARP(t, wire)
	snap := r.snapshot(t)
	r.close(t)

	wire, theirs = newWire(t)
	cfg = s.configFor(t, snap)
	cfg.Net = &vmm.Net{MAC: vmm.GuestMAC, MTU: mtu, Socket: theirs}
	r = s.restore(t, cfg, snap.from())
	_ = theirs.Close()
	r.checkMAC(t)
	r.mustCall(t, http.MethodPost, testapi.PathLink, nil, nil)
	waitARP(t, wire)
	r.close(t)

	cfg = s.configFor(t, snap)
	cfg.Net = nil
	if err := s.mustNotRestore(t, cfg, snap.from()); !errors.Is(err, vmm.ErrIncompatible) {
		t.Errorf("without the network interface: %v", err)
	}
}

// newWire returns a connection, and the socket at its other end for a machine.
func newWire(t *testing.T) (net.Conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "net"), os.NewFile(uintptr(fds[1]), "net")
	t.Cleanup(func() { _ = theirs.Close() })
	wire, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = wire.Close() })
	return wire, theirs
}

// waitARP waits until the guest asks for the gateway's address.
func waitARP(t *testing.T, wire net.Conn) {
	t.Helper()
	if err := wire.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := readFrame(wire)
		if err != nil {
			t.Fatalf("no ARP request came: %v", err)
		}
		const arp = 0x0806
		if source := net.HardwareAddr(frame[6:12]).String(); source != vmm.GuestMAC {
			t.Fatalf("a frame from %s", source)
		}
		if binary.BigEndian.Uint16(frame[12:]) == arp {
			return
		}
	}
}

// readFrame reads one frame with QEMU's framing.
func readFrame(r io.Reader) ([]byte, error) {
	var size uint32
	if err := binary.Read(r, binary.BigEndian, &size); err != nil {
		return nil, err
	}
	if size < 14 || size > 1<<16 {
		return nil, errors.New("bad framing")
	}
	frame := make([]byte, size)
	_, err := io.ReadFull(r, frame)
	return frame, err
}

func (r *running) checkMAC(t *testing.T) {
	t.Helper()
	var m testapi.Machine
	r.mustCall(t, http.MethodGet, testapi.PathMachine, nil, &m)
	if m.MAC != vmm.GuestMAC {
		t.Errorf("the guest's interface has address %q, configured is %s", m.MAC, vmm.GuestMAC)
	}
}

// testMetadata gives the guest a document larger than what fits by default,
// takes it back, and gives another one to a clone.
func (s *suite) testMetadata(t *testing.T) {
	if !s.caps.Metadata {
		t.Skip("this driver has no metadata service")
	}
	makeTap(t)
	plan := "secret: " + strings.Repeat("0123456789abcdef", 8<<10)
	cfg := s.config(t)
	cfg.Net = &vmm.Net{MAC: vmm.GuestMAC, Tap: testTap}
	cfg.Metadata = metadata(t, plan)
	r := s.boot(t, cfg)
	defer func() { r.close(t) }() // before the tap
	r.checkMAC(t)
	r.mustCall(t, http.MethodPost, testapi.PathLink, nil, nil)
	r.checkPlan(t, plan)
	setter, ok := r.Machine.(vmm.MetadataSetter)
	if !ok {
		t.Fatal("the machine has metadata and no SetMetadata")
	}
	if err := setter.SetMetadata(t.Context(), json.RawMessage("{}")); err != nil {
		t.Fatal(err)
	}
	var m testapi.Metadata
	r.mustCall(t, http.MethodGet, testapi.PathMetadata, nil, &m)
	if m.Status != http.StatusNotFound || strings.Contains(string(m.Body), "secret") {
		t.Errorf("after it was taken back the guest still gets HTTP status %d, %.40q", m.Status, m.Body)
	}

	snap := r.snapshot(t)
	r.close(t)
	cfg = s.configFor(t, snap)
	cfg.Metadata = metadata(t, "the clone's "+plan)
	r = s.restore(t, cfg, snap.from())
	r.checkMAC(t)
	r.checkPlan(t, "the clone's "+plan)
}

func metadata(t *testing.T, plan string) json.RawMessage {
	t.Helper()
	doc, err := json.Marshal(map[string]string{agentapi.MMDSPlanKey: plan})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// checkPlan has the guest ask the metadata service.
func (r *running) checkPlan(t *testing.T, plan string) {
	t.Helper()
	var m testapi.Metadata
	r.mustCall(t, http.MethodGet, testapi.PathMetadata, nil, &m)
	var got string
	if err := json.Unmarshal(m.Body, &got); m.Status != http.StatusOK || err != nil || got != plan {
		t.Fatalf("the guest got HTTP status %d, %d bytes (%v), not the plan of %d", m.Status, len(m.Body), err, len(plan))
	}
}

// makeTap makes a tap in the host's namespace.
func makeTap(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes a tap")
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: testTap}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(tap); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(tap); err != nil {
			t.Error(err)
		}
	})
	if err := netlink.LinkSetUp(tap); err != nil {
		t.Fatal(err)
	}
}

// testUnsupported asks for what the driver says it cannot do.
func (s *suite) testUnsupported(t *testing.T) {
	if s.caps.Metadata && s.caps.SockNetwork {
		t.Skip("this driver can do everything")
	}
	if !s.caps.Metadata {
		cfg := s.config(t)
		cfg.Metadata = json.RawMessage(`{}`)
		if err := s.mustFail(t, cfg); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("metadata: %v", err)
		}
	}
	if !s.caps.PageServer {
		cfg := s.config(t)
		cfg.HugePages = true
		if err := s.mustFail(t, cfg); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("huge pages: %v", err)
		}
	}
	if !s.caps.SockNetwork {
		cfg := s.config(t)
		cfg.Net = &vmm.Net{MAC: vmm.GuestMAC, Socket: cfg.Console}
		if err := s.mustFail(t, cfg); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("socket network: %v", err)
		}
	}
}
