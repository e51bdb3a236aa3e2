package vmmtest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vmm"
)

// testKill ends a machine before its guest has booted.
func (s *suite) testKill(t *testing.T) {
	r := s.start(t, s.config(t))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 { // the second time it is gone already
		if err := r.Kill(ctx); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-r.Done():
	default:
		t.Fatal("Kill returned before the end")
	}
	checkKilled(t, r)
}

func checkKilled(t *testing.T, r *running) {
	t.Helper()
	e := r.Exit()
	if e.Signal != int(syscall.SIGKILL) || e.Code != -1 || !strings.Contains(e.Reason, "SIGKILL") {
		t.Errorf("a VMM that was killed ended as %+v", e)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := r.Dial(ctx); !errors.Is(err, vmm.ErrExited) {
		t.Errorf("Dial: %v", err)
	}
	if err := r.Resume(ctx); !errors.Is(err, vmm.ErrExited) {
		t.Errorf("Resume: %v", err)
	}
}

// testUnexpectedDeath kills the VMM behind its driver's back.
func (s *suite) testUnexpectedDeath(t *testing.T) {
	r := s.boot(t, s.config(t))
	c, err := r.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	hungUp := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		hungUp <- err
	}()
	if err := syscall.Kill(r.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.waitEnd(t, patience)
	checkKilled(t, r)
	select {
	case err := <-hungUp:
		if err == nil {
			t.Error("a byte came from a guest that is gone")
		}
	case <-time.After(patience):
		t.Error("a connection to a guest that is gone stays open")
	}
}

// testKernelPanic boots a guest without an /init.
func (s *suite) testKernelPanic(t *testing.T) {
	cfg := s.config(t)
	path := filepath.Join(cfg.Dir, "no-init")
	if err := writeInitrd(path, "", ""); err != nil {
		t.Fatal(err)
	}
	cfg.Initrd = "no-init"
	r := s.start(t, cfg)
	e := r.waitEnd(t, s.caps.BootTimeout)
	if !strings.Contains(e.Reason, "Kernel panic - not syncing: ") {
		t.Errorf("a guest whose kernel panicked ended as %+v\n%s", e, tails(cfg))
	}
	t.Log(e.Reason)
}

// testMissingFile leaves out one file after the other.
func (s *suite) testMissingFile(t *testing.T) {
	for _, name := range []string{paths.KernelName, paths.InitrdName, paths.RootName, paths.ScratchName} {
		t.Run(name, func(t *testing.T) {
			cfg := s.config(t)
			if err := os.Remove(filepath.Join(cfg.Dir, name)); err != nil {
				t.Fatal(err)
			}
			err := s.mustFail(t, cfg)
			if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Join(cfg.Dir, name)) {
				t.Errorf("the error does not say that %s is missing: %v", name, err)
			}
		})
	}
}

// mustFail starts a machine that cannot be, and checks that nothing is left.
func (s *suite) mustFail(t *testing.T, cfg vmm.Config) error {
	t.Helper()
	m, err := s.driver.Start(t.Context(), cfg)
	if err == nil {
		_ = m.Close()
		t.Fatal("the machine started")
	}
	checkDir(t, cfg.Dir)
	return err
}

// testBadKernel starts from a file that is no kernel. A VMM may notice at
// once or by ending; either way it says so.
func (s *suite) testBadKernel(t *testing.T) {
	cfg := s.config(t)
	path := filepath.Join(cfg.Dir, "not-a-kernel")
	if err := os.WriteFile(path, []byte(strings.Repeat("not a kernel\n", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Kernel = "not-a-kernel"
	err := s.mustFail(t, cfg)
	if !strings.Contains(err.Error(), "kernel") {
		t.Errorf("the error does not name the kernel: %v", err)
	}
	t.Log(err)
}

// testCancelled starts with a context that has ended, and with one that soon
// does.
func (s *suite) testCancelled(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		cfg := s.config(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		m, err := s.driver.Start(ctx, cfg)
		if err == nil { // it was faster; ctx bounds the start only
			select {
			case <-m.Done():
				t.Errorf("the machine ended: %+v", m.Exit())
			case <-time.After(50 * time.Millisecond):
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %s: %v", after, err)
		}
		cancel()
		checkDir(t, cfg.Dir)
	}
}
