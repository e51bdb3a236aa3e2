package supervisor

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

// newLife returns the life of a VM that has gone through these statuses.
func newLife(t *testing.T, statuses ...vm.Status) *life {
	t.Helper()
	st, err := store.Open(paths.Layout{Data: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	v, err := st.Create("web", vm.Spec{Image: "img", Driver: "qemu", CPUs: 1, MemoryMiB: 512, Init: vm.InitAgent, Logs: vm.LogsFile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	for _, s := range statuses {
		if err := v.Move(s, ""); err != nil {
			t.Fatal(err)
		}
	}
	_, signals := newSignals(t)
	return &life{Deps: Deps{Store: st}, vm: v, signals: signals, Options: Options{Verbose: func(string) {}}, over: newLatch(), ready: newLatch()}
}

// sleeper is a machine that may not go on once it was paused.
type sleeper struct {
	guest
	err     error
	resumed bool
}

func (s *sleeper) Done() <-chan struct{} { return nil }

func (s *sleeper) Resume(context.Context) error { s.resumed = true; return s.err }

// A VM whose record cannot be written, or that cannot go on, ends when it is to.
func TestEndWhereNothingCanBeWritten(t *testing.T) {
	stop := func(c *commands) error { return c.Stop(context.Background(), time.Second) }
	kill := func(c *commands) error { return c.Kill(context.Background(), int(syscall.SIGKILL)) }
	for name, tc := range map[string]struct {
		end    func(*commands) error
		paused bool
		resume error // why it cannot go on
		want   []int // signals, and 0 for the end of the VMM
	}{
		"stop":                   {end: stop, want: []int{15}},
		"stop what is paused":    {end: stop, paused: true, want: []int{15}},
		"stop what cannot go on": {end: stop, paused: true, resume: errors.New("no"), want: []int{15, 9, 0}},
		"kill":                   {end: kill, want: []int{9}},
		"kill what is paused":    {end: kill, paused: true, want: []int{9}},
		"kill what cannot go on": {end: kill, paused: true, resume: errors.New("no"), want: []int{9, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLife(t, vm.StatusStarting, vm.StatusRunning)
				if tc.paused {
					if err := l.vm.Move(vm.StatusPaused, ""); err != nil {
						t.Fatal(err)
					}
				}
				m := &sleeper{err: tc.resume}
				in := &instance{life: l, machine: m, gone: newLatch()}
				l.current = in
				got := make(chan int, 8)
				l.signals.setKill(func() { got <- 0; in.gone.set(nil) })
				l.signals.setForward(func(sig int) {
					got <- sig
					if tc.resume == nil {
						in.gone.set(nil)
					}
				})
				if err := os.RemoveAll(string(l.vm.Dir())); err != nil {
					t.Fatal(err)
				}
				if err := tc.end((*commands)(l)); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				close(got)
				if signals := slices.Collect(func(yield func(int) bool) {
					for s := range got {
						yield(s)
					}
				}); !slices.Equal(signals, tc.want) {
					t.Errorf("signals %v, want %v", signals, tc.want)
				}
				if m.resumed != tc.paused {
					t.Errorf("resumed: %v", m.resumed)
				}
				rec := l.vm.Record()
				for _, change := range l.unwritten {
					change(&rec)
				}
				if rec.Status != vm.StatusStopping {
					t.Errorf("at the end the record says %s", rec.Status)
				}
			})
		})
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{
		"TERM": 15, "sigterm": 15, "9": 9, "64": 64, "SIGQUIT": 3,
		// As systemd's images and others have it.
		"SIGRTMIN": 34, "rtmin+3": 37, "SIGRTMIN+3": 37, "SIGRTMIN+30": 64, "RTMAX": 64, "SIGRTMAX-14": 50, "SIGRTMAX-30": 34,
	} {
		if got, err := ParseSignal(text); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "SIG", "0", "65", "-1", "NOPE", "SIGRTMIN-1", "SIGRTMIN+31", "SIGRTMIN+", "SIGRTMAX+1", "SIGRTMAX-31", "SIGRTMIN+x"} {
		if got, err := ParseSignal(text); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
}

// A machine that stands still though the record says that it runs goes on when it
// is told to; while a snapshot has it, it is left alone.
func TestResumeAsksTheMachine(t *testing.T) {
	g := &flakyGuest{still: true}
	in := newInstance(t, g)
	c := (*commands)(in.life)
	in.capturing.Lock()
	if err := c.Resume(t.Context()); err != nil || g.asked != 0 {
		t.Errorf("while its snapshot is taken: %v, asked %d times", err, g.asked)
	}
	in.capturing.Unlock()
	if err := c.Resume(t.Context()); err != nil || g.still {
		t.Errorf("%v; it stands still: %t", err, g.still)
	}
	for _, want := range []vm.Status{vm.StatusPaused, vm.StatusRunning} {
		do := c.Pause
		if want == vm.StatusRunning {
			do = c.Resume
		}
		if err := do(t.Context()); err != nil || g.still != (want == vm.StatusPaused) || in.vm.Record().Status != want {
			t.Errorf("to be %s: %v, it is %s", want, err, in.vm.Record().Status)
		}
	}
}

// A guest does not stand still for a pause that has failed, and nobody knows of.
func TestAPauseIsWholeOrNone(t *testing.T) {
	failed := errors.New("failed")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		pauses []error
		want   vm.Status
	}{
		{"it fails half-way", t.Context(), []error{failed}, vm.StatusRunning},
		{"nobody waits", gone, nil, vm.StatusPaused},
	} {
		g := &flakyGuest{pauses: c.pauses}
		in := newInstance(t, g)
		err := (*commands)(in.life).Pause(c.ctx)
		if (err != nil) != (c.pauses != nil) || in.vm.Record().Status != c.want || g.still != (c.want == vm.StatusPaused) {
			t.Errorf("%s: %v; it is %s, and stands still: %t", c.name, err, in.vm.Record().Status, g.still)
		}
	}
}

// A VM whose VMM was killed while it was paused is paused as its record has it, until
// that says how it has ended. There is nothing that could go on, or be saved.
func TestAVMThatHasEndedWhilePaused(t *testing.T) {
	c := (*commands)(newLife(t, vm.StatusStarting, vm.StatusRunning, vm.StatusPaused))
	for name, do := range map[string]func() error{
		"resume":   func() error { return c.Resume(t.Context()) },
		"pause":    func() error { return c.Pause(t.Context()) },
		"snapshot": func() error { _, err := c.Snapshot(t.Context(), control.SnapshotRequest{}); return err },
	} {
		if err := do(); !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
