package agent

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawner starts processes. As process 1 it also reaps every orphan of the
// guest; a single loop then waits for all children, since whoever waits for
// "any child" would take the exit status from a wait for one.
//
// Commands must have files as stdin, stdout and stderr: copying goroutines
// would need exec.Cmd.Wait, which is not called as process 1.
type spawner struct {
	reaps bool

	mu      sync.Mutex
	waiters map[int]chan syscall.WaitStatus
}

// child is a started process.
type child struct {
	pid  int
	done chan syscall.WaitStatus
}

// newSpawner returns a spawner; reaps says that this is process 1.
func newSpawner(reaps bool) *spawner {
	s := &spawner{reaps: reaps, waiters: map[int]chan syscall.WaitStatus{}}
	if reaps {
		sigs := make(chan os.Signal, 1)
		signal.Notify(sigs, unix.SIGCHLD)
		go func() {
			for range sigs {
				s.reapAll()
			}
		}()
	}
	return s
}

func (s *spawner) start(cmd *exec.Cmd) (*child, error) {
	// Held across Start, so that a child that ends at once is known to reapAll.
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, done: make(chan syscall.WaitStatus, 1)}
	if s.reaps {
		s.waiters[c.pid] = c.done
		return c, cmd.Process.Release()
	}
	go func() {
		err := cmd.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			c.done <- syscall.WaitStatus(125 << 8)
			return
		}
		ws, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
		c.done <- ws
	}()
	return c, nil
}

// run starts a command and waits for it.
func (s *spawner) run(cmd *exec.Cmd) (syscall.WaitStatus, error) {
	c, err := s.start(cmd)
	if err != nil {
		return 0, err
	}
	return <-c.done, nil
}

func (s *spawner) reapAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c, ok := s.waiters[pid]; ok {
			delete(s.waiters, pid)
			c <- ws
		}
	}
}

// exitCode is what a shell would say of a status.
func exitCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
