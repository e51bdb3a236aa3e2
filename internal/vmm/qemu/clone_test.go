package qemu

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest"
)

// A guest that puts its memory into the balloon without having been asked takes
// nothing away from the snapshot that it shares with others.
func TestBalloonOfCloneKeepsSnapshot(t *testing.T) {
	d := New(os.Getenv("FCVM_QEMU"), kvm.Probe, nil)
	if d.program == "" {
		t.Skip("QEMU is not installed")
	}
	guest := vmmtest.FindGuest(t)
	dir := t.TempDir()
	for from, to := range map[string]string{guest.Kernel: "kernel", guest.Initrd: "initrd"} {
		if err := os.Symlink(from, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cfg := vmm.Config{
		Dir: dir, Kernel: "kernel", Initrd: "initrd", CPUs: 1, MemoryMiB: 256, Console: log, VMMLog: log,
		Cmdline: "quiet " + agentapi.ParamChannel + "=serial",
	}
	ctx, cancel := context.WithTimeout(t.Context(), d.Capabilities().BootTimeout)
	defer cancel()
	original, err := d.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = original.Close() }()
	agent := agentclient.New(original.Dial)
	defer agent.Close()
	if _, err := agent.WaitAgent(ctx); err != nil {
		t.Fatal(err)
	}
	to := vmm.SnapshotFiles{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
	s := original.(*machine)
	if err := s.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(ctx, to); err != nil {
		t.Fatal(err)
	}
	if err := s.FinishSnapshot(ctx, to); err != nil {
		t.Fatal(err)
	}
	before := sumOf(t, to.Memory)
	m, err := d.Restore(ctx, cfg, vmm.RestoreFrom{State: to.State, Memory: to.Memory})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	inflate(ctx, t, m.(*machine).mon)
	if sumOf(t, to.Memory) != before {
		t.Error("the guest's balloon has changed the snapshot's memory")
	}
}

// inflate asks for all but 128 MiB, and waits until the guest has given most of
// what it can.
func inflate(ctx context.Context, t *testing.T, mon *qmp) {
	t.Helper()
	const keep, enough = 128 << 20, 176 << 20
	if err := mon.execute(ctx, "balloon", map[string]int64{"value": keep}, nil); err != nil {
		t.Fatal(err)
	}
	var b struct{ Actual int64 }
	for b.Actual == 0 || b.Actual > enough {
		if err := mon.execute(ctx, "query-balloon", nil, &b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func sumOf(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
