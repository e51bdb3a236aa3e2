package supervisor

import (
	"errors"
	"time"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/vm"
)

// stopwatch measures the phases of a start, and keeps what is known before
// there is a record.
type stopwatch struct {
	phases   []vm.Phase
	inner    time.Duration // of phases within the one that is under way
	resolved vm.Resolved
}

// phase starts one; the function it returns ends it. What a phase within it took
// is no part of its time.
func (t *stopwatch) phase(name string) func() {
	start, outer := time.Now(), t.inner
	t.inner = 0
	return func() {
		inner := t.inner
		t.inner = outer
		t.add(name, time.Since(start)-inner)
		t.inner += inner
	}
}

// add is a phase that has been measured already.
func (t *stopwatch) add(name string, took time.Duration) {
	t.phases = append(t.phases, vm.Phase{Name: name, Duration: took})
	t.inner += took
}

func processOf(pid int) vm.Process {
	start, err := proc.StartTime(pid)
	if err != nil {
		return vm.Process{} // it has ended already, and shows so elsewhere
	}
	return vm.Process{PID: pid, Start: start}
}

// later changes the record at the VM's end: there was no room for it on the disk.
func (l *life) later(change func(*vm.Record)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unwritten = append(l.unwritten, change)
}

// closeRecord writes how the VM ended, and lets go of it; a VM that was to be
// removed goes with its directory.
func (l *life) closeRecord(code int, err error) error {
	l.mu.Lock()
	unwritten := l.unwritten
	l.mu.Unlock()
	werr := l.vm.Update(func(r *vm.Record) error {
		for _, add := range unwritten {
			add(r)
		}
		if len(r.Phases) < len(l.timer.phases) { // else it has that of getting ready as well
			r.Phases = l.timer.phases
		}
		r.Ready, r.Health = false, ""
		if hasCode(err) {
			r.ExitCode = &code
		}
		var early *EndedEarly
		if err != nil && !errors.As(err, &early) {
			return r.Move(failedFrom(r), firstLine(err), time.Now())
		}
		return r.Move(vm.StatusExited, reasonOf(code, l.signals.killed()), time.Now())
	})
	l.mu.Lock()
	l.ended = control.Ended{ExitCode: exitFailed, Reason: l.vm.Record().Reason}
	if hasCode(err) {
		l.ended.ExitCode = code
	}
	l.mu.Unlock()
	l.vm.Tell(events.Stopped, l.vm.Record().Reason)
	if !l.Spec.Remove {
		return errors.Join(werr, l.vm.Close())
	}
	return l.vm.Remove() // what could not be written goes with it
}

// hasCode reports whether a container that ended with err has an exit code: one
// that ended too early has, and one that could not be started that of a shell.
func hasCode(err error) bool {
	var (
		early *EndedEarly
		start *StartError
	)
	return err == nil || errors.As(err, &early) || errors.As(err, &start)
}

// exitFailed is what waiters get for a VM that has no container's exit code.
const exitFailed = 125

// failedFrom: a VM that ran its container has exited, whatever went wrong then.
func failedFrom(r *vm.Record) vm.Status {
	for _, e := range r.History {
		if e.Status == vm.StatusRunning {
			return vm.StatusExited
		}
	}
	return vm.StatusFailed
}

// finalRecord is for the caller, even if it is not on disk any more.
func (l *life) finalRecord() vm.Record {
	r := l.vm.Record()
	r.Phases = l.timer.phases
	return r
}
