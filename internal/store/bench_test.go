package store

import (
	"fmt"
	"path/filepath"
	"testing"

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
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
