// Package firecracker runs machines with Firecracker, on KVM. It is the
// driver that fcvm is made for.
//
// Firecracker is configured through its HTTP API on a Unix socket in the VM's
// directory, which is its working directory: it is told relative names only,
// so that a snapshot of it names nothing of this host. Its standard output is
// the guest's serial console. The guest's agent is reached over vsock, which
// Firecracker offers as another Unix socket.
//
// https://github.com/firecracker-microvm/firecracker/tree/main/docs
package firecracker

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
)

const (
	name        = "Firecracker"
	programName = "firecracker"

	// The oldest Firecracker that describes its devices to the guest by ACPI
	// (1.8): distributions' kernels find them in no other way.
	minMajor = 1
	minMinor = 8

	// Of its own it had 0.6 MiB beside a guest of 384, and the kernel 1.3 for
	// both. The rest is room for what is read and written ahead on its disks.
	memoryOverheadMiB = 64

	bootTimeout = 2 * time.Minute

	remedyInstall = "run fcvm setup firecracker, or set FCVM_FIRECRACKER to its path"
)

// Driver runs machines with one Firecracker program.
type Driver struct {
	program  string // as found; empty: none
	kvm      func() kvm.Result
	versions *vmm.Versions
}

// New returns the driver. program is Firecracker's path; empty, it is looked
// for on the PATH. k says whether KVM is usable, as kvm.Probe does: without it
// Firecracker is not.
// versions remembers what it says to --version; nil: it is asked each time.
func New(program string, k func() kvm.Result, versions *vmm.Versions) *Driver {
	if program == "" {
		if p, err := exec.LookPath(programName); err == nil {
			program = p
		}
	}
	return &Driver{program: program, kvm: sync.OnceValue(k), versions: versions}
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return programName }

// Capabilities implements vmm.Driver.
func (d *Driver) Capabilities() vmm.Capabilities {
	return vmm.Capabilities{
		Metadata: true, TapNetwork: true, AgentVsock: true, PageServer: true,
		BootTimeout: bootTimeout, MemoryOverheadMiB: memoryOverheadMiB,
	}
}

// versionPattern matches the first line of --version; a log line follows.
var versionPattern = regexp.MustCompile(`^Firecracker v((\d+)\.(\d+)\S*)`)

// Probe implements vmm.Driver.
func (d *Driver) Probe(ctx context.Context) vmm.Availability { return d.probe(ctx, d.kvm) }

// Look implements vmm.Looker.
func (d *Driver) Look(ctx context.Context) vmm.Availability { return d.probe(ctx, kvm.Look) }

func (d *Driver) probe(ctx context.Context, tryKVM func() kvm.Result) vmm.Availability {
	a := vmm.Availability{Program: d.program}
	if d.program == "" {
		a.Reason, a.Remedy = "firecracker is not installed", remedyInstall
		return a
	}
	out, err := d.versions.Of(ctx, d.program)
	if err != nil {
		a.Reason, a.Remedy = err.Error(), remedyInstall
		return a
	}
	m := versionPattern.FindStringSubmatch(out)
	if m == nil {
		a.Reason, a.Remedy = fmt.Sprintf("%s --version says %.40q", d.program, out), remedyInstall
		return a
	}
	a.Version = m[1]
	if tooOld(m[2], m[3]) {
		a.Reason = fmt.Sprintf("Firecracker %s is older than %d.%d", a.Version, minMajor, minMinor)
		a.Remedy = "install a newer Firecracker: " + remedyInstall
		return a
	}
	if k := tryKVM(); !k.RunsGuest {
		a.Reason, a.Remedy = "Firecracker needs KVM: "+k.Reason, k.Remedy
		return a
	}
	a.Usable, a.Accelerated, a.Features = true, true, "KVM"
	a.Reason = "Firecracker " + a.Version + " with KVM"
	return a
}

// tooOld compares decimal numbers; one too large to be one is not old.
func tooOld(major, minor string) bool {
	x, errX := strconv.Atoi(major)
	y, errY := strconv.Atoi(minor)
	if errX != nil || errY != nil {
		return false
	}
	return x < minMajor || (x == minMajor && y < minMinor)
}
