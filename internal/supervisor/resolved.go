package supervisor

import (
	"path/filepath"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// resolveProcess says what became of the image's settings and the user's.
func (l *life) resolveProcess() vm.Runtime {
	c, img := &l.Spec.Container, &l.image.Config
	p := vm.Runtime{
		Env:     mergeEnv(img.Env, c.Env),
		WorkDir: orElse(c.WorkDir, img.WorkDir), User: orElse(c.User, img.User),
		StopSignal: orElse(img.StopSignal, "SIGTERM"),
	}
	if h := l.healthCheck(); healthArgs(h.Test) != nil {
		p.Health = &h
	}
	return p
}

// linkOf says how a guest is connected.
func linkOf(a network.Attachment) vm.Link {
	if a.Net() == nil {
		return vm.Link{}
	}
	return vm.Link{
		Interface: network.GuestInterface, MAC: a.Net().MAC, Address: network.GuestAddress,
		Gateway: network.Gateway, DNS: network.DNS, MTU: a.MTU(),
	}
}

// disksOf lists the guest's disks with the files behind them.
func disksOf(cfg *vmm.Config) []vm.Disk {
	var disks []vm.Disk
	for i, d := range cfg.Disks {
		path := filepath.Join(cfg.Dir, d.Path)
		if target, err := filepath.EvalSymlinks(path); err == nil {
			path = target
		}
		disks = append(disks, vm.Disk{ID: d.ID, Device: "/dev/vd" + string(rune('a'+i)), Path: path, ReadOnly: d.ReadOnly})
	}
	return disks
}
