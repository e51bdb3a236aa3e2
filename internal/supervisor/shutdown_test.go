package supervisor

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fcvm/fcvm/internal/vm"
)

// writer is a machine that ends when its guest has written its disks.
type writer struct {
	guest
	done chan struct{}
}

func (w *writer) Done() <-chan struct{} { return w.done }

func TestDisksAreWrittenAtTheEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		remove  bool          // nothing of the VM is kept
		answers bool          // the guest answers,
		takes   time.Duration // and writes for so long
		asked   bool
		lost    bool
	}{
		"at once":            {answers: true, asked: true},
		"on a slow disk":     {answers: true, takes: writeTimeout - time.Second, asked: true},
		"on none":            {answers: true, takes: writeTimeout + time.Second, asked: true, lost: true},
		"a guest that hangs": {asked: true, lost: true},
		"nothing to be kept": {remove: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, kill := range []bool{false, true} {
					l := newLife(t, vm.StatusStarting, vm.StatusRunning)
					l.Spec.Remove = tc.remove
					w := &writer{done: make(chan struct{})}
					in := &instance{life: l, machine: w, gone: newLatch()}
					var asked atomic.Bool
					in.agent = serveAgent(t, func(rw http.ResponseWriter, r *http.Request) {
						asked.Store(true)
						if !tc.answers {
							<-r.Context().Done()
							return
						}
						rw.WriteHeader(http.StatusNoContent)
						time.AfterFunc(tc.takes, func() { close(w.done) })
					})
					if !kill {
						in.shutDown(t.Context(), nil)
						if lost := errors.Is(errors.Join(in.trouble...), errUnwritten); lost != tc.lost {
							t.Errorf("lost: %t, want %t (%v)", lost, tc.lost, in.trouble)
						}
					} else {
						l.current = in
						got := make(chan int, 8)
						l.signals.setKill(func() { got <- 0; in.gone.set(nil) })
						l.signals.setForward(func(sig int) { got <- sig })
						if err := (*commands)(l).Kill(context.Background(), int(syscall.SIGKILL)); err != nil {
							t.Error(err)
						}
						if first, second := <-got, <-got; first != 9 || second != 0 {
							t.Errorf("signals %d, %d, want a SIGKILL and the end of the VMM", first, second)
						}
					}
					if asked.Load() != tc.asked {
						t.Errorf("by a kill: %t: asked: %t, want %t", kill, asked.Load(), tc.asked)
					}
					time.Sleep(2 * writeTimeout) // what has begun comes to its end
				}
			})
		})
	}
}
