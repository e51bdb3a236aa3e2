package cli

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/bridge"
	"github.com/fcvm/fcvm/internal/network/none"
	"github.com/fcvm/fcvm/internal/network/slirp"
	"github.com/fcvm/fcvm/internal/network/usernet"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/firecracker"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
	"github.com/fcvm/fcvm/internal/vmm/qemu"
	"github.com/fcvm/fcvm/internal/volume"
)

func (a *app) layout() (paths.Layout, error) {
	return paths.Resolve(a.dataDir, a.sys.getenv, a.sys.UID)
}

func (a *app) openStore() (*store.Store, error) {
	l, err := a.layout()
	if err != nil {
		return nil, err
	}
	s, err := store.Open(l)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDataDir, err)
	}
	if a.swept {
		return s, nil
	}
	// What a supervisor that was killed has left on the host is removed by the
	// next command of any kind. A bridge that cannot be looked after concerns
	// those who want to use it, and tells them.
	_ = bridge.Reconcile()
	snapshots := snapshotsOf(l)
	snapshots.Sweep()
	sweepServers(l, snapshots)
	return s, nil
}

func (a *app) openImages() (*image.Store, error) {
	l, err := a.layout()
	if err != nil {
		return nil, err
	}
	if !a.swept {
		store.Tidy(l)
	}
	s, err := image.Open(l.Images())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDataDir, err)
	}
	return s, nil
}

func (a *app) openSetup() (*setup.Setup, error) {
	l, err := a.layout()
	if err != nil {
		return nil, err
	}
	store.Tidy(l)
	return newSetup(l), nil
}

func snapshotsOf(l paths.Layout) *snapshot.Store { return snapshot.New(l.Snapshots()) }

func newSetup(l paths.Layout) *setup.Setup { return setup.New(l, runtime.GOARCH, "") }

// deps opens all that a supervisor works with. KVM is tried meanwhile, or, where
// that may not be needed, when somebody asks.
func (a *app) deps(tryKVM bool) (supervisor.Deps, error) {
	probe := sync.OnceValue(kvm.Probe)
	if tryKVM {
		go probe()
	}
	st, err := a.openStore()
	if err != nil {
		return supervisor.Deps{}, err
	}
	images, err := a.openImages()
	if err != nil {
		return supervisor.Deps{}, err
	}
	subnet, err := bridge.ParseSubnet(a.bridgeSubnet)
	if err != nil {
		return supervisor.Deps{}, err
	}
	return supervisor.Deps{
		Store: st, Setup: newSetup(st.Layout()), Images: images, Snapshots: snapshotsOf(st.Layout()), Volumes: volume.NewStore(st.Layout()),
		Drivers: a.drivers(st.Layout(), probe), Networks: networks(subnet),
	}, nil
}

// drivers are all there are, in the order in which "auto" tries them.
func (a *app) drivers(l paths.Layout, k func() kvm.Result) []vmm.Driver {
	return []vmm.Driver{a.firecracker(l, k), a.qemu(l, k)}
}

// firecracker is the program that the environment names, else the one that
// setup has installed, else the one on the PATH.
func (a *app) firecracker(l paths.Layout, k func() kvm.Result) vmm.Driver {
	program := a.sys.getenv("FCVM_FIRECRACKER")
	if program == "" {
		program = installedFirecracker(l)
	}
	return firecracker.New(program, k, vmm.NewVersions(l.Versions()))
}

// qemu is the program that the environment names, else the one on the PATH.
func (a *app) qemu(l paths.Layout, k func() kvm.Result) vmm.Driver {
	return qemu.New(a.sys.getenv("FCVM_QEMU"), k, vmm.NewVersions(l.Versions()))
}

// installedFirecracker is the one that setup has installed, or empty. A broken
// manifest is reported by those who need more of it.
func installedFirecracker(l paths.Layout) string {
	m, err := newSetup(l).Manifest()
	if err != nil || m.Firecracker == nil || len(m.Firecracker.Files) == 0 {
		return ""
	}
	return filepath.Join(l.Data, m.Firecracker.Files[0].Path)
}

// autoNetwork is what --network auto takes here, and why not others.
func (a *app) autoNetwork() (name, why string) {
	subnet, err := bridge.ParseSubnet(a.sys.getenv("FCVM_BRIDGE_SUBNET"))
	if err != nil {
		return "", err.Error()
	}
	name, why, err = supervisor.ChooseNetwork(networks(subnet), vm.NetworkSpec{Backend: "auto", Mode: vm.ModeAuto})
	if err != nil {
		return "", err.Error()
	}
	return name, why
}

// networks are all backends. The bridge is made with subnet, if it is valid.
func networks(subnet netip.Prefix) []network.Backend {
	return []network.Backend{usernet.New(), bridge.New(subnet), slirp.New(), none.New()}
}
