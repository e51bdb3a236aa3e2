// Package none is the network backend of VMs that have no network interface.
package none

import (
	"context"
	"fmt"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// Backend attaches VMs to nothing.
type Backend struct{}

var _ network.Backend = (*Backend)(nil)

// New returns the backend.
func New() *Backend { return &Backend{} }

// Name implements network.Backend.
func (*Backend) Name() string { return "none" }

// Available implements network.Backend.
func (*Backend) Available() error { return nil }

// Start implements network.Backend. Ports cannot be published.
func (b *Backend) Start(_ context.Context, cfg network.Config) (network.Attachment, error) {
	if len(cfg.Ports) > 0 {
		return nil, fmt.Errorf("%w: publish %s: a VM without a network has no ports; leave out --publish or choose another --network", vm.ErrInvalid, cfg.Ports[0])
	}
	if cfg.IP.IsValid() {
		return nil, cfg.Refuse(b.Name(), "--ip "+cfg.IP.String(), "bridge")
	}
	return attachment{}, nil
}

type attachment struct{}

func (attachment) Net() *vmm.Net          { return nil }
func (attachment) Launcher() vmm.Launcher { return nil }
func (attachment) Ports() []network.Port  { return nil }
func (attachment) MTU() int               { return 0 }
func (attachment) Close() error           { return nil }
