package agent

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPending is how many signals wait for a process to start; more than a
// person sends.
const maxPending = 16

// running is what signals must know of a process: they may come before it
// runs and after it has ended.
type running struct {
	mu      sync.Mutex
	pid     int // 0: it does not run yet
	over    bool
	pending []syscall.Signal
}

// began is called when the process runs; it delivers what has come before.
func (r *running) began(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pid = pid
	for _, sig := range r.pending {
		r.send(sig)
	}
	r.pending = nil
}

// ended is called when the process has ended: its id may soon be another's.
func (r *running) ended() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
}

func (r *running) signal(sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.over:
	case r.pid != 0:
		r.send(sig)
	case len(r.pending) < maxPending:
		r.pending = append(r.pending, sig)
	}
}

// send is called with mu held. The whole group gets the signal, as from a
// terminal. The runtime's commands lead no group of their own: a process that
// is gone has made it for them.
func (r *running) send(sig syscall.Signal) {
	if group, err := unix.Getpgid(r.pid); err == nil && group > 1 {
		_ = unix.Kill(-group, sig)
	}
}
