package vmmtest

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/fcvm/fcvm/internal/memserver"
	"github.com/fcvm/fcvm/internal/vmm"
)

// testPageServer restores machines whose memory comes from a server, page by
// page, and saves one of them.
func (s *suite) testPageServer(t *testing.T) {
	if !s.caps.PageServer {
		t.Skip("this driver takes no memory from a server")
	}
	r := s.boot(t, s.config(t))
	r.write(t, 1)
	snap := r.snapshot(t)
	r.close(t)
	socket := filepath.Join(t.TempDir(), "server")
	server, err := memserver.Open(memserver.Options{Snapshot: "test", Socket: socket, Memory: snap.Memory, Keep: true, Log: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx) }()
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
	if st := server.Stats(); len(st.Ended) != 2 {
		t.Errorf("the server knows of %d VMs, not 2", len(st.Ended))
	}
}
