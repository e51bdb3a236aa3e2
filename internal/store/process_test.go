package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/vm"
)

// helperArg makes the test's own program another fcvm: DATA NAME STATUS
// REMOVE VMM creates a VM, brings it to a status, says its id, and lives until
// its stdin ends.
const helperArg = "act-as-supervisor"

func helperMain(args []string) {
	s, err := Open(paths.Layout{Data: args[0], Runtime: args[0] + "-run"})
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	v, err := s.Create(args[1], vm.Spec{Remove: args[3] == "true"})
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	err = v.Update(func(r *vm.Record) error {
		r.Status = vm.Status(args[2])
		if _, err := fmt.Sscanf(args[4], "%d/%d", &r.Resolved.VMM.PID, &r.Resolved.VMM.Start); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	fmt.Println(v.id)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// helper is another process that has a VM.
type helper struct {
	cmd  *exec.Cmd
	said string // the id, or "error: …"
}

func startHelper(t *testing.T, s *Store, name string, status vm.Status, remove bool, vmm vm.Process) (*helper, error) {
	t.Helper()
	h := &helper{cmd: exec.Command("/proc/self/exe", helperArg, s.layout.Data, name, string(status),
		fmt.Sprint(remove), fmt.Sprintf("%d/%d", vmm.PID, vmm.Start))}
	stdin, err := h.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = stdin.Close(); h.kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	h.said = strings.TrimSpace(line)
	return h, err
}

func (h *helper) kill() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

func TestTwoProcessesOfOneName(t *testing.T) {
	s := newStore(t)
	const many = 6
	said := make([]string, many)
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			h, err := startHelper(t, s, "same", vm.StatusRunning, false, vm.Process{})
			if err != nil {
				t.Error(err)
				return
			}
			said[i] = h.said
		})
	}
	all.Wait()
	won := ""
	for _, line := range said {
		switch {
		case vm.ValidID(line) && won == "":
			won = line
		case !strings.Contains(line, vm.ErrNameTaken.Error()):
			t.Errorf("one says %q", line)
		}
	}
	if es := list(t, s); len(es) != 1 || es[0].Record.ID != won || !es[0].Alive {
		t.Errorf("%+v, and %q has won", es, won)
	}
	if err := s.Remove(won); !errors.Is(err, vm.ErrRunning) {
		t.Errorf("remove another process's VM: %v", err)
	}
}

func TestDeadSupervisors(t *testing.T) {
	for _, status := range []vm.Status{vm.StatusCreated, vm.StatusStarting, vm.StatusRunning, vm.StatusPaused, vm.StatusStopping} {
		for _, remove := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, --rm=%v", status, remove), func(t *testing.T) {
				s := newStore(t)
				h, err := startHelper(t, s, "web", status, remove, vm.Process{})
				if err != nil || !vm.ValidID(h.said) {
					t.Fatalf("%q, %v", h.said, err)
				}
				if es := list(t, s); len(es) != 1 || !es[0].Alive || es[0].Record.Status != status {
					t.Fatalf("while it lives: %+v", es)
				}
				socket, err := s.layout.ControlSocket(h.said)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.MkdirAll(socket, 0o700); err != nil { // something to be removed
					t.Fatal(err)
				}
				h.kill()
				es := list(t, s)
				if _, err := os.Stat(socket); err == nil {
					t.Error("its control socket is left")
				}
				if remove {
					if len(es) != 0 {
						t.Errorf("it was to be removed: %+v", es)
					}
					return
				}
				if len(es) != 1 || es[0].Alive || es[0].Record.Status != vm.StatusFailed {
					t.Fatalf("%+v", es)
				}
				r := es[0].Record
				if !strings.Contains(r.Reason, fmt.Sprint(h.cmd.Process.Pid)) || !strings.Contains(r.Reason, string(status)) {
					t.Errorf("reason %q", r.Reason)
				}
				if last := r.History[len(r.History)-1]; last.Status != vm.StatusFailed || last.Reason != r.Reason {
					t.Errorf("history %+v", r.History)
				}
				if _, err := s.Create("web", vm.Spec{}); !errors.Is(err, vm.ErrNameTaken) {
					t.Errorf("its record keeps the name: %v", err)
				}
				if err := s.Remove(r.ID); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A name is free again at once when its VM was to be removed.
func TestSameNameAfterSIGKILL(t *testing.T) {
	s := newStore(t)
	for range 3 {
		h, err := startHelper(t, s, "same", vm.StatusRunning, true, vm.Process{})
		if err != nil || !vm.ValidID(h.said) {
			t.Fatalf("%q, %v", h.said, err)
		}
		h.kill()
	}
}

// A VMM that is left is ended, but never a process that has its id by chance.
func TestVMMOfADeadSupervisor(t *testing.T) {
	for _, same := range []bool{true, false} {
		t.Run(fmt.Sprintf("same process: %v", same), func(t *testing.T) {
			s := newStore(t)
			vmm := exec.Command("sleep", "1000")
			if err := vmm.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = vmm.Wait(); close(ended) }()
			defer func() { _ = vmm.Process.Kill(); <-ended }()
			p := vm.Process{PID: vmm.Process.Pid}
			var err error
			if p.Start, err = proc.StartTime(p.PID); err != nil {
				t.Fatal(err)
			}
			if !same {
				p.Start--
			}
			h, err := startHelper(t, s, "web", vm.StatusRunning, false, p)
			if err != nil {
				t.Fatal(err)
			}
			h.kill()
			list(t, s)
			if same {
				<-ended
				return
			}
			select {
			case <-ended:
				t.Error("a process that is not its VMM was killed")
			default:
			}
		})
	}
}

func TestLeftovers(t *testing.T) {
	s := newStore(t)
	half := s.layout.VM(vm.NewID())                // died in the middle of Create
	trash := s.layout.VM(trashPrefix + vm.NewID()) // died in the middle of Remove
	for _, dir := range []paths.VMDir{half, trash + "/x"} {
		if err := os.MkdirAll(string(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if es := list(t, s); len(es) != 0 {
		t.Errorf("%+v", es)
	}
	for _, dir := range []paths.VMDir{half, trash} {
		if _, err := os.Stat(string(dir)); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}
