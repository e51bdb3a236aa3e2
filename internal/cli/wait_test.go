package cli

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

// endOf is a supervisor whose VM ends when it is told to.
type endOf struct {
	control.VM // what is not here is not asked for

	asked chan struct{} // closed when somebody waits
	over  chan struct{}
	code  int
}

func (e *endOf) Wait(ctx context.Context) (control.Ended, error) {
	close(e.asked)
	select {
	case <-e.over:
		return control.Ended{ExitCode: e.code}, nil
	case <-ctx.Done():
		return control.Ended{}, context.Cause(ctx)
	}
}

// A VM that is forgotten when it has ended may end while others are waited for.
func TestWaitKnowsTheExitCodeOfWhatEndsFirst(t *testing.T) {
	h := newHost(t)
	sup := map[string]*endOf{}
	vms := map[string]*store.VM{}
	servers := map[string]*control.Server{}
	for i, name := range []string{"long", "short"} {
		sup[name] = &endOf{asked: make(chan struct{}), over: make(chan struct{}), code: 3 + i}
		vms[name] = h.running(name)
		s, err := control.Listen(h.socket(vms[name]), sup[name])
		if err != nil {
			t.Fatal(err)
		}
		servers[name] = s
	}
	var ends sync.WaitGroup
	t.Cleanup(ends.Wait)
	ends.Go(func() {
		for _, name := range []string{"short", "long"} {
			select {
			case <-sup["short"].asked:
			case <-t.Context().Done(): // it never was
				return
			}
			close(sup[name].over)
			if err := servers[name].Close(context.Background()); err != nil {
				t.Error(err)
			}
			if err := vms[name].Remove(); err != nil {
				t.Error(err)
			}
		}
	})
	if out := h.ok("wait", "long", "short"); out != "3\n4\n" {
		t.Errorf("stdout %q", out)
	}
}

// What was removed before it could be asked has left word.
func TestExitCodeOfWhatIsRemovedBeforeItIsAsked(t *testing.T) {
	for name, tc := range map[string]struct {
		code *int
		told bool
		want int // -1: it is not known
	}{
		"ended": {code: new(int), told: true, want: 0}, "never ran": {told: true, want: exitFailed}, "no word": {want: -1},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.socket(h.running("other")) // a directory for sockets
			v := h.running("job")
			st, err := store.Open(h.layout())
			if err != nil {
				t.Fatal(err)
			}
			e, err := st.Find("job")
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Update(func(r *vm.Record) error { r.ExitCode = tc.code; return nil }); err != nil {
				t.Fatal(err)
			}
			if tc.told {
				v.Tell(events.Stopped, "the end")
			}
			if err := v.Remove(); err != nil {
				t.Fatal(err)
			}
			code, err := waitEnd(t.Context(), st, e)
			switch {
			case tc.want < 0 && (err == nil || !strings.Contains(err.Error(), "not known")):
				t.Errorf("code %d, %v", code, err)
			case tc.want >= 0 && (err != nil || code != tc.want):
				t.Errorf("code %d, %v; want %d", code, err, tc.want)
			}
		})
	}
}
