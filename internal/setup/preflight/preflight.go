// Package preflight looks at a host and says whether fcvm can run VMs on it,
// by which driver, and what to do about what is in the way. It changes
// nothing: what it tries (a user namespace, a userfaultfd, opening devices)
// goes away with the check.
//
// It knows neither VMM nor KVM by itself: drivers and the KVM probe are given
// to it, so that it reports exactly what `fcvm run` would act on.
package preflight

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
)

// Status of one check.
type Status string

// A check that warns takes something away (speed, a network backend, a kind
// of clone); one that fails means that no VM can run.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is what was found out about one thing.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`           // what was found, one line
	Remedy string `json:"remedy,omitempty"` // a command or a sentence; set whenever Status is not OK
}

// Report is the outcome of all checks.
type Report struct {
	OK     bool   `json:"ok"`               // `fcvm run` would work
	Driver string `json:"driver,omitempty"` // the one that `--vmm auto` would take
	Why    string `json:"why"`              // why that one, or why none; one line
	// Network is the one that --network auto would take, and why no faster one.
	Network    string  `json:"network,omitempty"`
	NetworkWhy string  `json:"network_why,omitempty"`
	Checks     []Check `json:"checks"`
}

// KVM is how far the host's KVM goes. A device that opens is not enough:
// some hosts have a KVM that runs no ordinary guest.
type KVM struct {
	Present   bool // the device is there
	Permitted bool // and may be opened
	CPUFlag   bool // the CPU has hardware virtualization
	RunsGuest bool // an ordinary guest's instructions ran in it
	Reason    string
	Remedy    string
}

// Driver is what the checks ask of a VMM driver.
type Driver interface {
	Name() string
	Probe(ctx context.Context) vmm.Availability
}

// Options say what to look at.
type Options struct {
	DataDir string                        // where disks will lie; it need not exist
	KVM     func(ctx context.Context) KVM // nil: not checked
	Drivers []Driver                      // in order of preference, as `--vmm auto` has them
}

// probeTimeout bounds one check that starts a process or a VMM.
const probeTimeout = 20 * time.Second

// Run looks at the host. It takes up to a few seconds, most of which the KVM
// probe and the VMMs' version look-ups need. A check that cannot be made
// shows in the report; there is no error.
func Run(ctx context.Context, o Options) Report {
	uid := os.Getuid()
	checks := []Check{checkCPU(runtime.GOARCH), checkKernel()}
	if o.KVM != nil {
		checks = append(checks, checkKVM(ctx, o.KVM))
	}
	drivers, driver, why := checkDrivers(ctx, o.Drivers)
	checks = append(checks, drivers...)
	checks = append(
		checks,
		checkTun(uid),
		checkUserNamespaces(ctx, uid),
		checkNftables(uid),
		checkUserfaultfd(),
		checkDisk(o.DataDir),
		checkMemory(),
		checkCgroup(uid),
	)
	checks = append(checks, checkTools(uid)...)

	r := Report{OK: driver != "", Driver: driver, Why: why, Checks: checks}
	for _, c := range checks {
		if c.Status == Fail {
			r.OK = false
			if driver != "" {
				r.Why = fmt.Sprintf("%s would be taken, but: %s: %s", driver, c.Name, c.Detail)
			}
			break
		}
	}
	return r
}

func checkKVM(ctx context.Context, probe func(context.Context) KVM) Check {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	k := probe(ctx)
	c := Check{Name: "kvm", Status: Warn, Detail: k.Reason, Remedy: k.Remedy}
	switch {
	case k.RunsGuest:
		c.Status, c.Remedy = OK, ""
		c.Detail = orElse(c.Detail, "present, permitted, runs an ordinary guest")
	case !k.Present:
		c.Detail = orElse(c.Detail, "/dev/kvm is not there")
		c.Remedy = orElse(c.Remedy, "enable virtualization in the firmware (or nested virtualization on the host of this VM); until then VMs are emulated by QEMU")
	case !k.Permitted:
		c.Detail = orElse(c.Detail, "/dev/kvm may not be opened")
		c.Remedy = orElse(c.Remedy, "sudo usermod -aG kvm $USER, then log in again; until then VMs are emulated by QEMU")
	default:
		c.Detail = orElse(c.Detail, "/dev/kvm is there but runs no ordinary guest")
		c.Remedy = orElse(c.Remedy, "nothing to do on this host: VMs are emulated by QEMU; a host with hardware virtualization runs them fast")
	}
	return c
}

// checkDrivers asks every driver; the first usable one is what auto takes.
func checkDrivers(ctx context.Context, drivers []Driver) (checks []Check, driver, why string) {
	var reasons string
	for _, d := range drivers {
		pctx, cancel := context.WithTimeout(ctx, probeTimeout)
		a := d.Probe(pctx)
		cancel()
		c := Check{Name: d.Name(), Status: Warn, Detail: a.Reason, Remedy: a.Remedy}
		if a.Program != "" {
			c.Detail = fmt.Sprintf("%s %s: %s", a.Program, a.Version, a.Reason)
		}
		if a.Usable {
			c.Status, c.Remedy = OK, ""
		} else {
			c.Remedy = orElse(c.Remedy, "see the other drivers: one is enough")
		}
		checks = append(checks, c)
		switch {
		case driver != "":
		case a.Usable:
			driver, why = d.Name(), a.Reason
			if reasons != "" {
				why += " (" + reasons + ")"
			}
		default:
			if reasons != "" {
				reasons += "; "
			}
			reasons += d.Name() + ": " + a.Reason
		}
	}
	if driver == "" {
		why = "no VMM can run VMs here: " + orElse(reasons, "no driver is known")
	}
	return checks, driver, why
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
