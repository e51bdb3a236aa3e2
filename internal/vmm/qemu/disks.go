package qemu

import (
	"fmt"

	"github.com/fcvm/fcvm/internal/vmm"
)

// diskArgs attaches a disk. One of the host's that is full is an error in the
// guest: else QEMU would stop the guest, without a word.
func diskArgs(d vmm.Disk) []string {
	ro, file, node := "off", "file", d.ID
	if d.ReadOnly {
		ro = "on"
	}
	if d.Device {
		file = "host_device"
	}
	limited := d.Rate != (vmm.Rate{})
	if limited {
		node += "-raw"
	}
	a := []string{"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=%s,discard=unmap,file.driver=%s,file.filename=%s", node, ro, file, escape(d.Path))}
	if limited {
		// A group's limits are a structure, which only JSON can say.
		a = append(a,
			"-object", fmt.Sprintf(`{"qom-type":"throttle-group","id":"%s-rate","limits":{"bps-total":%d,"iops-total":%d}}`, d.ID, d.Rate.Bytes, d.Rate.Ops),
			"-blockdev", fmt.Sprintf("driver=throttle,node-name=%s,read-only=%s,discard=unmap,throttle-group=%s-rate,file=%s", d.ID, ro, d.ID, node))
	}
	return append(a, "-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s,werror=report,rerror=report", d.ID, d.ID))
}
