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

// testSocketNetwork reads the guest's frames from a socket.
func (s *suite) testSocketNetwork(t *testing.T) {
	if !s.caps.SockNetwork {
		t.Skip("this driver takes no socket for its network")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "net"), os.NewFile(uintptr(fds[1]), "net")
	wire, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = wire.Close() }()
	cfg := s.config(t)
	cfg.Net = &vmm.Net{MAC: vmm.GuestMAC, Socket: theirs}
	r := s.boot(t, cfg)
	_ = theirs.Close()
	defer r.close(t)
	r.checkMAC(t)
	r.mustCall(t, http.MethodPost, testapi.PathLink, nil, nil)
	// The guest asks for the gateway's address.
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
// and takes it back.
func (s *suite) testMetadata(t *testing.T) {
	if !s.caps.Metadata {
		t.Skip("this driver has no metadata service")
	}
	makeTap(t)
	plan := "secret: " + strings.Repeat("0123456789abcdef", 8<<10)
	doc, err := json.Marshal(map[string]string{agentapi.MMDSPlanKey: plan})
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.config(t)
	cfg.Net = &vmm.Net{MAC: vmm.GuestMAC, Tap: testTap}
	cfg.Metadata = doc
	r := s.boot(t, cfg)
	defer r.close(t) // before the tap
	r.checkMAC(t)
	r.mustCall(t, http.MethodPost, testapi.PathLink, nil, nil)
	var m testapi.Metadata
	r.mustCall(t, http.MethodGet, testapi.PathMetadata, nil, &m)
	var got string
	if err := json.Unmarshal(m.Body, &got); m.Status != http.StatusOK || err != nil || got != plan {
		t.Fatalf("the guest got HTTP status %d, %d bytes (%v), not the plan of %d", m.Status, len(m.Body), err, len(plan))
	}
	clearer, ok := r.Machine.(vmm.MetadataClearer)
	if !ok {
		t.Fatal("the machine has metadata and no ClearMetadata")
	}
	if err := clearer.ClearMetadata(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.mustCall(t, http.MethodGet, testapi.PathMetadata, nil, &m)
	if m.Status != http.StatusNotFound || strings.Contains(string(m.Body), "secret") {
		t.Errorf("after ClearMetadata the guest still gets HTTP status %d, %.40q", m.Status, m.Body)
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
	if !s.caps.SockNetwork {
		cfg := s.config(t)
		cfg.Net = &vmm.Net{MAC: vmm.GuestMAC, Socket: cfg.Console}
		if err := s.mustFail(t, cfg); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("socket network: %v", err)
		}
	}
}
