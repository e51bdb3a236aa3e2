package firecracker

import (
	"os"
	"testing"

	"github.com/fcvm/fcvm/internal/vmm/kvm"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	d := New(os.Getenv("FCVM_FIRECRACKER"), kvm.Probe())
	if d.program == "" {
		t.Skip("no firecracker binary: neither $FCVM_FIRECRACKER nor on the PATH")
	}
	if !d.kvm.RunsGuest {
		t.Skip("Firecracker needs KVM (try the lab): " + d.kvm.Reason)
	}
	vmmtest.Run(t, d, vmmtest.FindGuest(t))
}
