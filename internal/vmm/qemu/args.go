package qemu

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/fcvm/fcvm/internal/vmm"
)

// Descriptors that QEMU inherits, in this order.
const (
	fdMonitor = 3 + iota
	fdMemory  // of the guest
	fdChannel // a guest that boots: the agent channel; one that is restored: its state
	fdNet
)

// portID is what QEMU calls the agent's port in its events.
const portID = "agent-port"

// host is what QEMU's command line depends on besides the machine.
type host struct {
	kvm    bool
	tscKHz int // of the time stamp counter; 0: not to be used
	// restore is the version of QEMU that made the state to load, if any.
	restore *version
}

// args is QEMU's command line. cfg's paths are relative to its directory. What
// a guest sees of its machine does not depend on whether it boots or is
// restored: devices, their order, and the firmware's files.
func args(cfg *vmm.Config, h host) []string {
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "fcvm",
		"-machine", machineType(h.kvm) + ",memory-backend=ram", "-cpu", cpu(h.kvm),
		"-smp", fmt.Sprint(cfg.CPUs), "-m", fmt.Sprintf("%dM", cfg.MemoryMiB), "-object", memoryObject(cfg, h),
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", fdMonitor), "-mon", "chardev=monitor,mode=control",
		// Standard output is the console's file. It is opened anew, since QEMU
		// takes a descriptor only in the mode in which it would open the file.
		"-chardev", "file,id=console,path=/proc/self/fd/1,append=on", "-serial", "chardev:console",
		"-device", "virtio-serial-pci,max_ports=2",
		"-chardev", "socket,id=agent," + agentSocketOption(h),
		"-device", "virtserialport,id=" + portID + ",chardev=agent,nr=1,name=" + vmm.AgentSerialName,
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
		"-device", "virtio-balloon-pci,deflate-on-oom=on",
		// A guest that breaks out of QEMU's devices finds that it can neither
		// start programs nor become another user.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
	if h.restore == nil || runtime.GOARCH != "amd64" {
		// On x86_64, nothing of this is in the machine's state, and a guest that
		// runs looks at none of it again: what QEMU does not load costs nothing.
		a = append(a, "-kernel", cfg.Kernel, "-initrd", cfg.Initrd, "-append", cmdline(cfg, h))
	}
	if h.restore != nil {
		// Stopped, until it is told what to load. The state is that of devices
		// alone (see Snapshot), which comes without a section on QEMU itself.
		a = append(a, "-S", "-incoming", "defer", "-global", "migration.send-configuration=off")
	}
	if runtime.GOARCH == "amd64" {
		// The number is a new one each time that QEMU starts. Kernels that know
		// the device then seed their generator again.
		a = append(a, "-device", "vmgenid,guid=auto")
	}
	if h.kvm {
		a = append(a, "-accel", "kvm")
	} else {
		// One thread for all virtual CPUs: guests of two with a thread for each
		// have locked up on busy hosts, each CPU waiting for the other, and
		// started a container a third more slowly.
		a = append(a, "-accel", fmt.Sprintf("tcg,thread=single,tb-size=%d", codeBuffer))
	}
	for _, d := range cfg.Disks {
		a = append(a, diskArgs(d)...)
	}
	if n := cfg.Net; n != nil {
		if n.Socket != nil {
			a = append(a, "-netdev", fmt.Sprintf("socket,id=net,fd=%d", fdNet))
		} else {
			a = append(a, "-netdev", "tap,id=net,ifname="+escape(n.Tap)+",script=no,downscript=no")
		}
		dev := "virtio-net-pci,netdev=net,romfile=,mac=" + n.MAC // romfile=: no boot from the network
		if n.MTU > 0 {
			dev += fmt.Sprintf(",host_mtu=%d", n.MTU)
		}
		a = append(a, "-device", dev)
	}
	return a
}

// memoryObject is where the guest's memory lies: a file of this process's when
// it boots, which is shared with it, so that a snapshot is a copy of that file;
// a private mapping of a snapshot's when it is restored.
func memoryObject(cfg *vmm.Config, h host) string {
	o := fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=/proc/self/fd/%d", cfg.MemoryMiB, fdMemory)
	switch {
	case h.restore == nil:
		return o + ",share=on"
	case h.restore.readOnlyFiles():
		return o + ",share=off,readonly=on,rom=off"
	default:
		return o + ",share=off"
	}
}

// agentSocketOption is where the host's end of the agent channel is. The port
// of a restored guest must not be connected while its state is loaded: see
// agentPort.
func agentSocketOption(h host) string {
	if h.restore != nil {
		return "path=" + agentSocket + ",server=on,wait=off"
	}
	return fmt.Sprintf("fd=%d", fdChannel)
}

// machineType is the board, without the devices that it would bring along.
func machineType(useKVM bool) string {
	if runtime.GOARCH == "arm64" {
		if useKVM {
			return "virt,gic-version=host"
		}
		return "virt,gic-version=3"
	}
	return "q35,vmport=off,smbus=off,sata=off,usb=off,i8042=off,hpet=off"
}

func cpu(useKVM bool) string {
	switch {
	case useKVM:
		return "host"
	case runtime.GOARCH == "arm64":
		return "max,pauth-impdef=on" // the architected algorithm is slow to emulate
	default:
		return "max,la57=off" // each level of page tables is walked in software
	}
}

// cmdline is the kernel's command line with what belongs to this machine. A
// guest that resets, or panics, ends QEMU (-no-reboot); it does so by a triple
// fault, as there is no keyboard controller. The kernel's self-tests of its
// ciphers take a fifth of an emulated boot.
func cmdline(cfg *vmm.Config, h host) string {
	own := []string{"console=ttyS0", "reboot=t", "panic=-1", "cryptomgr.notests"}
	if runtime.GOARCH == "arm64" {
		own = []string{"console=ttyAMA0", "panic=-1", "cryptomgr.notests"}
	}
	if !h.kvm {
		// The emulator does not speculate, so there is nothing to mitigate.
		own = append(own, "mitigations=off")
		if runtime.GOARCH == "amd64" {
			// The timer interrupt works, and measuring the CPU's speed takes time.
			own = append(own, "no_timer_check", "lpj=4000000")
		}
		if h.tscKHz > 0 {
			// Without this the guest takes another clock, which is right as
			// well, but takes an exit from emulated code for each look at it.
			own = append(own, "tsc=reliable", fmt.Sprintf("tsc_early_khz=%d", h.tscKHz))
		}
	}
	return strings.Join(append(own, cfg.Cmdline), " ")
}

// escape doubles commas, which QEMU's options are separated by.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
