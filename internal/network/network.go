// Package network gives a VM its network: a backend attaches the guest's one
// interface to the world, opens published ports, and takes all of it down
// again. Inside the guest the link is always the same (see the constants);
// what differs lies outside, in the VM's own namespace.
package network

import (
	"context"
	"errors"
	"net/netip"

	"github.com/fcvm/fcvm/internal/vmm"
)

// What every guest sees, whatever the backend.
const (
	GuestInterface = "eth0"
	GuestAddress   = "10.0.2.15/24"
	Gateway        = "10.0.2.2"
	DNS            = "10.0.2.3"
	TapName        = "tap0"
)

// Sentinel errors of backends.
var (
	ErrPortTaken   = errors.New("port is already in use")
	ErrUnavailable = errors.New("network backend is not available")
)

// Port is one published port.
type Port struct {
	HostIP    netip.Addr `json:"host_ip"`
	HostPort  uint16     `json:"host_port"` // 0: any free one; resolved when published
	GuestPort uint16     `json:"guest_port"`
	Protocol  string     `json:"protocol"` // "tcp" or "udp"
}

// Config is what a backend needs to know of a VM.
type Config struct {
	ID    string // the VM's
	Ports []Port
	// Driver's abilities decide how the interface is attached.
	Capabilities vmm.Capabilities
}

// Backend makes attachments.
type Backend interface {
	Name() string
	// Available says whether this host can do it; nil, or why not and what to do.
	Available() error
	// Start makes the VM's end of the network, with its published ports open.
	Start(ctx context.Context, cfg Config) (Attachment, error)
}

// Attachment is one VM's network. It lives until Close.
type Attachment interface {
	// Net is what the VMM is told; nil: no interface.
	Net() *vmm.Net
	// Launcher starts the VMM inside the attachment's namespace; nil: anywhere.
	Launcher() vmm.Launcher
	// Ports as opened, with the host ports that were chosen.
	Ports() []Port
	// MTU in the guest, bytes.
	MTU() int
	Close() error
}
