package qemu

import (
	"os"
	"testing"

	"github.com/fcvm/fcvm/internal/vmm/kvm"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	// The environment may name another QEMU than that on the PATH.
	d := New(os.Getenv("FCVM_QEMU"), kvm.Probe, nil)
	if d.program == "" {
		t.Skip("QEMU is not installed")
	}
	vmmtest.Run(t, d, vmmtest.FindGuest(t), nil)
}
