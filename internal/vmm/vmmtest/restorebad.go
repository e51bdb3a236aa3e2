package vmmtest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
)

// testRestoreBad restores what cannot be restored, and takes snapshots that
// cannot be taken.
func (s *suite) testRestoreBad(t *testing.T) {
	r := s.boot(t, s.config(t))
	to := snapshotFiles(t)
	if err := r.snapshotter(t).Snapshot(t.Context(), to); err == nil {
		t.Error("Snapshot of a machine that runs succeeds")
	}
	checkGone(t, to)
	r.write(t, 1)
	snap := r.snapshot(t)
	if err := r.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.snapshotter(t).Snapshot(t.Context(), snap.SnapshotFiles); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Snapshot over another: %v", err)
	}
	if _, err := os.Stat(snap.Memory); err != nil {
		t.Errorf("a snapshot that failed has removed another's files: %v", err)
	}
	if err := r.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.check(t, 1)

	for _, c := range []struct {
		name   string
		change func(t *testing.T, cfg *vmm.Config, from *vmm.RestoreFrom)
		want   error // nil: any
	}{
		{"no state", func(_ *testing.T, _ *vmm.Config, from *vmm.RestoreFrom) { from.State += "-not" }, fs.ErrNotExist},
		{"no memory", func(_ *testing.T, _ *vmm.Config, from *vmm.RestoreFrom) { from.Memory += "-not" }, fs.ErrNotExist},
		{"no disk", func(t *testing.T, cfg *vmm.Config, _ *vmm.RestoreFrom) {
			if err := os.Remove(filepath.Join(cfg.Dir, cfg.Disks[1].Path)); err != nil {
				t.Fatal(err)
			}
		}, fs.ErrNotExist},
		{"half a state", func(t *testing.T, _ *vmm.Config, from *vmm.RestoreFrom) {
			from.State = changed(t, from.State, func(b []byte) []byte { return b[:len(b)/2] })
		}, nil},
		{"a changed state", func(t *testing.T, _ *vmm.Config, from *vmm.RestoreFrom) {
			from.State = changed(t, from.State, func(b []byte) []byte { b[len(b)/3] ^= 0x10; return b })
		}, nil},
		{"an empty state", func(t *testing.T, _ *vmm.Config, from *vmm.RestoreFrom) {
			from.State = changed(t, from.State, func([]byte) []byte { return nil })
		}, nil},
		{"half the memory", func(t *testing.T, _ *vmm.Config, from *vmm.RestoreFrom) {
			from.Memory = changed(t, from.Memory, func(b []byte) []byte { return b[:len(b)/2] })
		}, vmm.ErrIncompatible},
		{"another machine's CPUs", func(_ *testing.T, cfg *vmm.Config, _ *vmm.RestoreFrom) { cfg.CPUs++ }, vmm.ErrIncompatible},
		{"another machine's memory", func(_ *testing.T, cfg *vmm.Config, _ *vmm.RestoreFrom) { cfg.MemoryMiB *= 2 }, vmm.ErrIncompatible},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, from := s.configFor(t, snap), snap.from()
			c.change(t, &cfg, &from)
			err := s.mustNotRestore(t, cfg, from)
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v, not %v", err, c.want)
			}
			t.Log(err)
		})
	}
	s.testRestoreUnsupported(t, snap)
	s.restore(t, s.configFor(t, snap), snap.from()).check(t, 1)
}

func (s *suite) testRestoreUnsupported(t *testing.T, snap snapshot) {
	t.Helper()
	if s.caps.PageServer {
		return
	}
	cfg := s.configFor(t, snap)
	err := s.mustNotRestore(t, cfg, vmm.RestoreFrom{State: snap.State, PageServer: filepath.Join(cfg.Dir, "server")})
	if !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("from a page server: %v", err)
	}
}

func (s *suite) mustNotRestore(t *testing.T, cfg vmm.Config, from vmm.RestoreFrom) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := s.restorer(t).Restore(ctx, cfg, from)
	if err == nil {
		_ = m.Close()
		t.Fatal("the machine was restored")
	}
	checkDir(t, cfg.Dir)
	return err
}

// changed is a copy of a file, but for a change.
func changed(t *testing.T, path string, change func([]byte) []byte) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "changed")
	if err := os.WriteFile(to, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func checkGone(t *testing.T, files vmm.SnapshotFiles) {
	t.Helper()
	for _, path := range []string{files.Memory, files.State} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left behind: %s (%v)", path, err)
		}
	}
}

// testSnapshotKilled ends the VMM while it is saved.
func (s *suite) testSnapshotKilled(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond} {
		r := s.boot(t, s.config(t))
		r.write(t, 1)
		if err := r.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		to := snapshotFiles(t)
		go func() {
			time.Sleep(after)
			_ = r.Kill(context.Background())
		}()
		began := time.Now()
		err := r.snapshotter(t).Snapshot(t.Context(), to)
		t.Logf("killed after %s: Snapshot took %s: %v", after, ms(time.Since(began)), err)
		r.waitEnd(t, patience)
		if err == nil { // it was faster
			continue
		}
		if !errors.Is(err, vmm.ErrExited) {
			t.Errorf("killed after %s: %v", after, err)
		}
		checkGone(t, to)
	}
}
