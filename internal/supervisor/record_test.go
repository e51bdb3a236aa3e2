package supervisor

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/vm"
)

// The record has the exit code that whoever ran the VM was given.
func TestExitCodeInTheRecord(t *testing.T) {
	start := &StartError{Args: []string{"x"}, Exit: agentapi.Exit{Code: 127, Failed: true}}
	for name, tc := range map[string]struct {
		ran    bool
		code   int
		err    error
		status vm.Status
		want   int // -1: none
	}{
		"ended":                            {true, 3, nil, vm.StatusExited, 3},
		"ended before it was ready":        {true, 3, &EndedEarly{Code: 3}, vm.StatusExited, 3},
		"could not be started":             {false, 127, start, vm.StatusFailed, 127},
		"a command that did not, after it": {true, 127, start, vm.StatusExited, 127},
		"did not boot":                     {false, 0, ErrBoot, vm.StatusFailed, -1},
		"was lost":                         {true, 0, errors.Join(ErrGuest), vm.StatusExited, -1},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t, vm.StatusStarting)
			if tc.ran {
				if err := l.vm.Move(vm.StatusRunning, ""); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.closeRecord(tc.code, tc.err); err != nil {
				t.Fatal(err)
			}
			e, err := l.Store.Find(l.vm.Record().ID)
			if err != nil {
				t.Fatal(err)
			}
			got := -1
			if e.Record.ExitCode != nil {
				got = *e.Record.ExitCode
			}
			if got != tc.want || e.Record.Status != tc.status {
				t.Errorf("%s with code %d, want %s with %d", e.Record.Status, got, tc.status, tc.want)
			}
		})
	}
}

// A container that ends before the snapshot is taken that was to be taken of it ends
// with its own code, and somebody is told.
func TestASnapshotThatWasNotTakenIsMissed(t *testing.T) {
	failed := errors.New("failed")
	for name, tc := range map[string]struct {
		save  string
		saved bool
		err   error
		told  bool
	}{
		"nobody asked": {"", false, nil, false},
		"taken":        {"warm", true, nil, false},
		"too late":     {"warm", false, nil, true},
		"it failed":    {"warm", false, failed, false},
	} {
		l := newLife(t, vm.StatusStarting, vm.StatusRunning)
		l.SaveSnapshot, l.saved = tc.save, tc.saved
		res, err := l.end(t.Context(), 3, tc.err)
		if !errors.Is(err, tc.err) || res.ExitCode != 3 {
			t.Errorf("%s: code %d, %v", name, res.ExitCode, err)
		}
		if told := errors.Is(res.Trouble, errUnsaved); told != tc.told {
			t.Errorf("%s: %v", name, res.Trouble)
		}
	}
}

// Phases add up to the time that has gone by, also those that are parts of others.
func TestPhasesAddUp(t *testing.T) {
	const nap = 20 * time.Millisecond
	var w stopwatch
	began := time.Now()
	outer := w.phase("outer")
	for range 2 {
		inner := w.phase("inner")
		time.Sleep(nap)
		inner()
	}
	started := time.Now()
	time.Sleep(nap)
	w.add("measured", time.Since(started))
	time.Sleep(nap)
	outer()
	w.phase("next")()
	whole := time.Since(began)
	var names []string
	var sum time.Duration
	for _, p := range w.phases {
		names, sum = append(names, p.Name), sum+p.Duration
		if p.Duration < 0 || p.Name != "next" && p.Duration < nap {
			t.Errorf("%s took %s", p.Name, p.Duration)
		}
	}
	if len(names) != 5 || names[3] != "outer" || sum > whole || sum < 4*nap {
		t.Errorf("%q, %s in all, of %s", names, sum, whole)
	}
}

// A VM that is lost is started again as its policy says, also when it was paused.
func TestRestartOfWhatWasPaused(t *testing.T) {
	l := newLife(t, vm.StatusStarting, vm.StatusRunning, vm.StatusPaused)
	if err := l.pauseBeforeRestart(t.Context(), "the VM was lost", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if r := l.vm.Record(); r.Status != vm.StatusStarting || r.Restarts != 1 {
		t.Errorf("%s after %d restarts", r.Status, r.Restarts)
	}
}

// Who waits for the end of a VM is told the same as who asks after it.
func TestExitCodeForThoseWhoWait(t *testing.T) {
	for name, tc := range map[string]struct {
		code int
		err  error
		want int
	}{
		"ended":                     {3, nil, 3},
		"ended before it was ready": {0, &EndedEarly{}, 0},
		"could not be started":      {127, &StartError{Exit: agentapi.Exit{Code: 127, Failed: true}}, 127},
		"stopped while it booted":   {143, &Interrupted{Signal: unix.SIGTERM}, exitFailed},
		"did not boot":              {0, ErrBoot, exitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t, vm.StatusStarting)
			if err := l.closeRecord(tc.code, tc.err); err != nil {
				t.Fatal(err)
			}
			l.over.set(nil)
			if e, err := (*commands)(l).Wait(t.Context()); err != nil || e.ExitCode != tc.want {
				t.Errorf("code %d, %v; want %d", e.ExitCode, err, tc.want)
			}
		})
	}
}
