// Package network gives a VM its network: a backend attaches the guest's one
// interface to the world, opens published ports, and takes all of it down
// again. Inside the guest the link is always the same (see the constants);
// what differs lies outside, in the VM's own namespace.
package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// What every guest sees, whatever the backend.
const (
	GuestInterface = "eth0"
	GuestAddress   = "10.0.2.15/24"
	Gateway        = "10.0.2.2"
	DNS            = "10.0.2.3"
	TapName        = "tap0"
	// GatewayMAC is the gateway's address on the link.
	GatewayMAC = "02:fc:00:00:00:02"

	// With a backend that carries IPv6, the guest has these besides.
	GuestAddress6 = "fd00:fc:0:2::15/64"
	Gateway6      = "fd00:fc:0:2::2"
)

// Sentinel errors of backends.
var (
	ErrPortTaken   = errors.New("port is already in use")
	ErrUnavailable = errors.New("network backend is not available")
	// ErrCollision: a network or address is in use by somebody else.
	ErrCollision = errors.New("address is in use")
	// ErrNotPublished: a port that is to be closed is not open.
	ErrNotPublished = errors.New("port is not published")
)

// Port is one published port.
type Port struct {
	// HostIP not valid: all addresses of the host, of IPv4 and, where the backend and
	// the host have it, of IPv6. Once published it is that of one family.
	HostIP   netip.Addr `json:"host_ip"`
	HostPort uint16     `json:"host_port"` // 0: any free one; resolved when published
	// HostPortEnd is the last of a range that begins with HostPort, any free one
	// of which will do; 0: it is that port, and so it is once it is published.
	HostPortEnd uint16 `json:"host_port_end,omitempty"`
	GuestPort   uint16 `json:"guest_port"`
	Protocol    string `json:"protocol"` // "tcp" or "udp"
}

// Config is what a backend needs to know of a VM.
type Config struct {
	ID    string // the VM's
	Name  string // the VM's, by which others may find it
	Ports []Port
	// Driver's abilities decide how the interface is attached.
	Capabilities vmm.Capabilities

	Egress   Egress
	Servers  []netip.Addr // name servers in place of the host's
	IP       netip.Addr   // the VM's address among others; the zero Addr: any
	Isolated bool         // from other VMs

	// Say is told what a backend changes on the host beyond what goes with the
	// VM; nil: nobody wants to know.
	Say func(line string)

	// Phase is called when a phase ("namespace": until the VM's network namespace
	// and what is in it are there) begins; the function that it returns is called
	// at its end. nil: nobody listens.
	Phase vmm.Phase
}

// Refuse returns an error for what a backend cannot do of a Config, naming
// the ones that can. The flags are those of fcvm run.
func (c *Config) Refuse(backend, flag, others string) error {
	return fmt.Errorf("%w: %s: the network %s cannot do it; use --network %s", vm.ErrInvalid, flag, backend, others)
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
	// Launcher starts the VMM inside the attachment's namespace; nil: anywhere. It
	// may start another one after that has ended.
	Launcher() vmm.Launcher
	// Ports as opened, with the host ports that were chosen.
	Ports() []Port
	// MTU in the guest, bytes.
	MTU() int
	Close() error
}

// Publisher is implemented by attachments whose ports can be opened and closed
// while the VM runs.
type Publisher interface {
	// Publish opens a port and returns it with the host port that was chosen;
	// without a host address, one for each family.
	Publish(ctx context.Context, p Port) ([]Port, error)
	// Unpublish closes a port; connections that were made go on. The error
	// wraps ErrNotPublished when it is not open.
	Unpublish(p Port) error
}

// Addressed is implemented by attachments that give their VM addresses among
// other VMs.
type Addressed interface {
	// Addresses of the VM; one of IPv6 says that the guest's link carries it.
	Addresses() []netip.Addr
}

// Renamer is implemented by attachments whose VM others find by its name.
type Renamer interface{ Rename(name string) error }

// Dependent is implemented by attachments that are a program's work, and end
// with it.
type Dependent interface {
	// Lost gives one error, which says how the program ended, if it does so
	// before Close.
	Lost() <-chan error
}

// NameServers is implemented by attachments whose guest is to ask name servers
// itself, in place of DNS.
type NameServers interface{ NameServers() []netip.Addr }
