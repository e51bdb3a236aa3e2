package firecracker

import (
	"context"
	"os"
	"testing"

	"github.com/fcvm/fcvm/internal/memserver"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	d := New(os.Getenv("FCVM_FIRECRACKER"), kvm.Probe, nil)
	if d.program == "" {
		t.Skip("no firecracker binary: neither $FCVM_FIRECRACKER nor on the PATH")
	}
	if !d.kvm().RunsGuest {
		t.Skip("Firecracker needs KVM (try the lab): " + d.kvm().Reason)
	}
	vmmtest.Run(t, d, vmmtest.FindGuest(t), serveMemory)
}

func serveMemory(t *testing.T, socket, memory string) func(context.Context) error {
	t.Helper()
	s, err := memserver.Open(memserver.Options{Snapshot: "test", Socket: socket, Memory: memory, Keep: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { t.Logf("memory server: %+v", s.Stats().Ended) })
	return s.Serve
}
