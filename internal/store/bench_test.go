package store

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vm"
)

// BenchmarkReconcile is what every command pays for looking after VMs, with
// 200 records of which most have ended.
func BenchmarkReconcile(b *testing.B) {
	const records, alive = 200, 20
	dir := b.TempDir()
	s, err := Open(paths.Layout{Data: filepath.Join(dir, "data"), Runtime: filepath.Join(dir, "run")})
	if err != nil {
		b.Fatal(err)
	}
	for i := range records {
		v, err := s.create(fmt.Sprintf("vm-%d", i), vm.Spec{Image: "img", Container: vm.ContainerSpec{Env: make([]string, 20)}})
		if err != nil {
			b.Fatal(err)
		}
		moves := []vm.Status{vm.StatusStarting, vm.StatusRunning}
		if i >= alive {
			moves = append(moves, vm.StatusExited)
		}
		for _, to := range moves {
			if err := v.Move(to, "benchmark"); err != nil {
				b.Fatal(err)
			}
		}
		if i < alive {
			b.Cleanup(func() { _ = v.Close() })
		} else if err := v.Close(); err != nil {
			b.Fatal(err)
		}
	}
	for name, f := range map[string]func() error{
		"Reconcile": s.Reconcile,
		"List":      func() error { _, err := s.List(); return err },
	} {
		b.Run(name, func(b *testing.B) {
			before := cpuTime(b)
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
			// On a busy host the time that passes says little.
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
