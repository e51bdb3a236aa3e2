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
	fdAgent
	fdConsole
	fdNet
)

// args is QEMU's command line. cfg's paths are relative to its directory.
func args(cfg *vmm.Config, useKVM bool) []string {
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "fcvm",
		"-machine", machine(useKVM), "-cpu", cpu(useKVM),
		"-smp", fmt.Sprint(cfg.CPUs), "-m", fmt.Sprintf("%dM", cfg.MemoryMiB),
		"-kernel", cfg.Kernel, "-initrd", cfg.Initrd, "-append", cmdline(cfg, useKVM),
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", fdMonitor), "-mon", "chardev=monitor,mode=control",
		"-add-fd", fmt.Sprintf("fd=%d,set=1", fdConsole),
		"-chardev", "file,id=console,path=/dev/fdset/1,append=on", "-serial", "chardev:console",
		"-device", "virtio-serial-pci,max_ports=2",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", fdAgent),
		"-device", "virtserialport,chardev=agent,nr=1,name=" + vmm.AgentSerialName,
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
		// A guest that breaks out of QEMU's devices finds that it can neither
		// start programs nor become another user.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
	if useKVM {
		a = append(a, "-accel", "kvm")
	} else {
		a = append(a, "-accel", "tcg,thread=multi")
	}
	for _, d := range cfg.Disks {
		ro := "off"
		if d.ReadOnly {
			ro = "on"
		}
		a = append(a,
			"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=%s,discard=unmap,file.driver=file,file.filename=%s", d.ID, ro, escape(d.Path)),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", d.ID, d.ID))
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

func machine(useKVM bool) string {
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

// cmdline is the kernel's command line with what belongs to this machine.
func cmdline(cfg *vmm.Config, useKVM bool) string {
	own := []string{"console=ttyS0", "reboot=t", "panic=-1"}
	if runtime.GOARCH == "arm64" {
		own = []string{"console=ttyAMA0", "panic=-1"}
	}
	if !useKVM {
		// The emulator does not speculate, so there is nothing to mitigate.
		own = append(own, "mitigations=off", "no_timer_check", "tsc=reliable", "lpj=4000000")
	}
	return strings.Join(append(own, cfg.Cmdline), " ")
}

// escape doubles commas, which QEMU's options are separated by.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
