package vmmtest

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/fcvm/fcvm/internal/vmm"
)

// PageServer serves the memory in a file on a socket, until ctx ends. It is not
// made here, as its own tests are made with this package.
type PageServer func(t *testing.T, socket, memory string) (serve func(context.Context) error)

// testPageServer restores machines whose memory comes from a server, page by
// page, and saves one of them.
func (s *suite) testPageServer(t *testing.T) {
	if !s.caps.PageServer {
		t.Skip("this driver takes no memory from a server")
	}
	if s.pages == nil {
		t.Fatal("this driver's test brings no memory server")
	}
	r := s.boot(t, s.config(t))
	r.write(t, 1)
	snap := r.snapshot(t)
	r.close(t)
	socket := filepath.Join(t.TempDir(), "server")
	serve := s.pages(t, socket, snap.Memory)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the memory server: %v", err)
		}
	}()
	from := vmm.RestoreFrom{State: snap.State, PageServer: socket}
	t.Run("Clones", func(t *testing.T) { // which end before the server
		first, second := s.restore(t, s.configFor(t, snap), from), s.restore(t, s.configFor(t, snap), from)
		first.check(t, 1)
		first.write(t, 2)
		second.check(t, 1)
		again := first.snapshot(t)
		s.restore(t, s.configFor(t, again), again.from()).check(t, 2)
	})
}
