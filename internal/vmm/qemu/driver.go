// Package qemu runs machines with QEMU: with KVM where that is usable, else
// by software emulation (TCG), which works everywhere. It is the driver for
// hosts on which Firecracker cannot run.
//
// QEMU is told everything on its command line and through inherited
// descriptors: the monitor, the agent channel and the network, where it is no tap,
// are socket pairs, so that no socket lies in the file system.
package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
)

const name = "QEMU" // in messages

// Oldest QEMU that has all that is used here (-netdev stream, 7.2).
const (
	minMajor = 7
	minMinor = 2
)

// Limits on the time from the start to the agent's answer. Emulation is some
// twenty times slower, and hosts that need it are often busy.
const (
	bootTimeoutKVM = time.Minute
	bootTimeoutTCG = 4 * time.Minute
)

// Memory that QEMU needs beside the guest's, MiB. Its own was 45 MiB anonymous
// and 70 MiB of files (its program, kernel and initramfs as loaded) with a guest
// of 512 MiB. Emulated code comes on top of that.
const (
	overheadKVM = 192
	overheadTCG = overheadKVM + codeBuffer

	// codeBuffer bounds the translated code. QEMU's own bound is 1 GiB, which
	// a guest fills in time, whatever its size. The boot with Podman takes 128.
	codeBuffer = 256
)

// Driver runs machines with one QEMU program.
type Driver struct {
	program  string // as found; empty: none
	kvm      func() kvm.Result
	versions *vmm.Versions
}

// New returns the driver. program is QEMU's path; empty, it is looked for on
// the PATH. k says whether KVM is usable, as kvm.Probe does.
// versions remembers what it says to --version; nil: it is asked each time.
func New(program string, k func() kvm.Result, versions *vmm.Versions) *Driver {
	if program == "" {
		if p, err := exec.LookPath(programName()); err == nil {
			program = p
		}
	}
	return &Driver{program: program, kvm: sync.OnceValue(k), versions: versions}
}

func programName() string {
	if runtime.GOARCH == "arm64" {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return "qemu" }

// Capabilities implements vmm.Driver.
func (d *Driver) Capabilities() vmm.Capabilities {
	c := vmm.Capabilities{SockNetwork: true, TapNetwork: true, BootTimeout: bootTimeoutTCG, MemoryOverheadMiB: overheadTCG}
	if d.kvm().RunsGuest {
		c.BootTimeout, c.MemoryOverheadMiB = bootTimeoutKVM, overheadKVM
	}
	return c
}

var versionPattern = regexp.MustCompile(`version (\d+)\.(\d+)[.\w]*`)

// Probe implements vmm.Driver.
func (d *Driver) Probe(ctx context.Context) vmm.Availability {
	a := vmm.Availability{Program: d.program, Accelerated: d.kvm().RunsGuest}
	if d.program == "" {
		a.Reason = programName() + " is not installed"
		a.Remedy = "apt-get install qemu-system-x86"
		if runtime.GOARCH == "arm64" {
			a.Remedy = "apt-get install qemu-system-arm"
		}
		return a
	}
	out, err := d.versions.Of(ctx, d.program)
	if err != nil {
		a.Reason = err.Error()
		return a
	}
	m := versionPattern.FindStringSubmatch(out)
	if m == nil {
		a.Reason = fmt.Sprintf("%s --version says %.40q", d.program, out)
		return a
	}
	a.Version = m[0][len("version "):]
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < minMajor || (major == minMajor && minor < minMinor) {
		a.Reason = fmt.Sprintf("QEMU %s is older than %d.%d", a.Version, minMajor, minMinor)
		a.Remedy = "install a newer QEMU"
		return a
	}
	a.Usable = true
	a.Features, a.Reason = "TCG", "QEMU "+a.Version+", by software emulation: "+d.kvm().Reason
	if a.Accelerated {
		a.Features, a.Reason = "KVM", "QEMU "+a.Version+" with KVM"
	}
	return a
}
