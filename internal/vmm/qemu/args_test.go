package qemu

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/vmm"
)

// values returns what follows an option, for each time that it is there.
func values(args []string, option string) (found []string) {
	for i, a := range args[:len(args)-1] {
		if a == option {
			found = append(found, args[i+1])
		}
	}
	return found
}

func TestArgs(t *testing.T) {
	cfg := vmm.Config{
		Kernel: "kernel", Initrd: "initrd", Cmdline: "quiet", CPUs: 3, MemoryMiB: 512,
		Disks: []vmm.Disk{{ID: "root", Path: "a,b.ext4", ReadOnly: true}, {ID: "scratch", Path: "scratch.ext4"}},
	}
	a := args(&cfg, host{tscKHz: 2600000})
	for option, want := range map[string]string{"-smp": "3", "-m": "512M", "-kernel": "kernel", "-initrd": "initrd", "-accel": "tcg,thread=single,tb-size=256"} {
		if got := values(a, option); !slices.Equal(got, []string{want}) {
			t.Errorf("%s %q, not %q", option, got, want)
		}
	}
	disks := values(a, "-blockdev")
	if len(disks) != 2 || !strings.Contains(disks[0], "read-only=on") || !strings.HasSuffix(disks[0], "file.filename=a,,b.ext4") || !strings.Contains(disks[1], "read-only=off") {
		t.Errorf("disks %q", disks)
	}
	if n := values(a, "-netdev"); n != nil {
		t.Errorf("a network that was not asked for: %q", n)
	}
	if c := values(a, "-append"); !strings.HasSuffix(c[0], " tsc=reliable tsc_early_khz=2600000 quiet") || !strings.Contains(c[0], " mitigations=off ") {
		t.Errorf("kernel command line %q", c)
	}
}

func TestArgsWithKVM(t *testing.T) {
	a := args(&vmm.Config{}, host{kvm: true})
	if got := values(a, "-accel"); !slices.Equal(got, []string{"kvm"}) {
		t.Errorf("-accel %q", got)
	}
	// A real CPU does speculate.
	if c := values(a, "-append"); strings.Contains(c[0], "mitigations") {
		t.Errorf("kernel command line %q", c)
	}
}

func TestArgsNetwork(t *testing.T) {
	if c := values(args(&vmm.Config{}, host{}), "-append"); strings.Contains(c[0], "tsc") {
		t.Errorf("the guest is told to use a counter that is unfit: %q", c)
	}
	tap := args(&vmm.Config{Net: &vmm.Net{MAC: vmm.GuestMAC, Tap: "tap0", MTU: 9000}}, host{})
	if got := values(tap, "-netdev"); !slices.Equal(got, []string{"tap,id=net,ifname=tap0,script=no,downscript=no"}) {
		t.Errorf("-netdev %q", got)
	}
	if !slices.ContainsFunc(values(tap, "-device"), func(d string) bool {
		return strings.HasPrefix(d, "virtio-net-pci") && strings.Contains(d, vmm.GuestMAC) && strings.HasSuffix(d, "host_mtu=9000")
	}) {
		t.Errorf("-device %q", values(tap, "-device"))
	}
	socket := args(&vmm.Config{Net: &vmm.Net{MAC: vmm.GuestMAC, Socket: os.Stdin}}, host{})
	if got := values(socket, "-netdev"); !slices.Equal(got, []string{"socket,id=net,fd=6"}) {
		t.Errorf("-netdev %q", got)
	}
	if runtime.GOARCH == "amd64" && !slices.Contains(values(socket, "-cpu"), "max,la57=off") {
		t.Errorf("-cpu %q", values(socket, "-cpu"))
	}
}
