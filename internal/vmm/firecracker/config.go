package firecracker

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vmm"
)

const (
	apiSocket = "firecracker.sock" // in the VM's directory
	logPath   = "/proc/self/fd/2"  // Firecracker's log joins its stderr

	guestCID    = 3 // of every guest: each has a socket of its own
	interfaceID = "eth0"

	// payloadSlack is what a store of metadata counts beside the document itself,
	// bytes. Firecracker takes no more than 51200 in all unless it is told to.
	payloadSlack = 4096
)

var (
	errNetSocket  = errors.New("Firecracker attaches its network to a tap, not to a socket")
	errMetadata   = errors.New("the metadata is too large")
	errNoMetadata = errors.New("metadata reaches the guest over its network interface, and it has none")
)

// check refuses what Firecracker cannot do.
func check(cfg *vmm.Config) error {
	switch {
	case cfg.Net != nil && cfg.Net.Socket != nil:
		return fmt.Errorf("%w: %w", vmm.ErrUnsupported, errNetSocket)
	case len(cfg.Metadata) > vmm.MaxMetadata:
		return fmt.Errorf("%w: %d bytes, the limit is %d", errMetadata, len(cfg.Metadata), vmm.MaxMetadata)
	case cfg.Metadata != nil && cfg.Net == nil:
		return fmt.Errorf("%w: %w", vmm.ErrUnsupported, errNoMetadata)
	}
	return cfg.CheckFiles()
}

// args is Firecracker's command line. Without --log-path it would log to the
// guest's console.
func args(cfg *vmm.Config) []string {
	a := []string{"--api-sock", apiSocket, "--log-path", logPath, "--level", "Warning", "--show-level"}
	if cfg.Metadata != nil {
		n := strconv.Itoa(vmm.MaxMetadata + payloadSlack)
		a = append(a, "--http-api-max-payload-size", n, "--mmds-size-limit", n)
	}
	return a
}

// requests configures a machine and boots it.
func requests(cfg *vmm.Config) []request {
	rs := []request{
		put("/machine-config", machineConfig{VCPUs: cfg.CPUs, MemoryMiB: cfg.MemoryMiB, HugePages: hugePages(cfg)}),
		put("/boot-source", bootSource{Kernel: cfg.Kernel, Initrd: cfg.Initrd, Args: cmdline(cfg)}),
		put("/vsock", vsockDevice{CID: guestCID, Path: paths.VsockName}),
		put("/entropy", entropyDevice{}),
		put("/balloon", balloonDevice{DeflateOnOOM: true}),
	}
	for _, d := range cfg.Disks {
		rs = append(rs, put("/drives/"+d.ID, drive{ID: d.ID, Path: d.Path, ReadOnly: d.ReadOnly, Limiter: limiter(d.Rate)}))
	}
	if n := cfg.Net; n != nil {
		// The guest's MTU cannot be given here; the agent sets it.
		rs = append(rs, put("/network-interfaces/"+interfaceID, networkInterface{ID: interfaceID, Tap: n.Tap, MAC: n.MAC}))
	}
	if cfg.Metadata != nil {
		rs = append(rs,
			put("/mmds/config", mmdsConfig{Version: "V2", Interfaces: []string{interfaceID}}),
			put("/mmds", cfg.Metadata))
	}
	return append(rs, put("/actions", action{Type: "InstanceStart"}))
}

func hugePages(cfg *vmm.Config) string {
	if cfg.HugePages {
		return "2M"
	}
	return ""
}

// limiter is nil for a disk without bounds.
func limiter(r vmm.Rate) *rateLimiter {
	if r == (vmm.Rate{}) {
		return nil
	}
	bucket := func(n uint64) *tokenBucket {
		if n == 0 {
			return nil
		}
		return &tokenBucket{Size: n, RefillMS: 1000}
	}
	return &rateLimiter{Bandwidth: bucket(r.Bytes), Ops: bucket(r.Ops)}
}

// cmdline is the kernel's command line with what belongs to this machine. A
// guest that resets (reboot=k, through the keyboard controller) ends
// Firecracker, which has no power button; a panic resets at once. There is no
// PCI bus to look for, and the keyboard controller has nothing but the reset.
// The kernel's self-tests of its ciphers only cost time.
//
// Asynchronous page faults are off. A guest that is told by KVM that a page is on its
// way puts the task to sleep until KVM says that it has come; what KVM has yet to say
// when a snapshot is taken is no part of it, and each fault of a clone costs the
// guest two interrupts and a change of tasks.
func cmdline(cfg *vmm.Config) string {
	own := []string{"console=ttyS0", "panic=-1", "pci=off", "cryptomgr.notests"}
	if runtime.GOARCH == "amd64" {
		own = append(own, "no-kvmapf", "reboot=k", "8250.nr_uarts=1", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd")
	}
	return strings.Join(append(own, cfg.Cmdline), " ")
}
