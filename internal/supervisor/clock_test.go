package supervisor

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/vm"
)

// A guest that goes on is given the time. One that does not take it goes on all the
// same, without much of a delay, and somebody is told.
func TestResumeSetsTheClock(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc // to a request for the clock
		warns  string
		within time.Duration
	}{
		"it does": {
			answer: func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					return
				}
				defer func() { _ = conn.Close() }()
				_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+agentapi.StreamProtocol+"\r\n\r\n")
				_, p, err := agentapi.NewFrameReader(conn).Next()
				q, parseErr := agentapi.ParseClockRequest(p)
				if err == nil && parseErr == nil {
					a := agentapi.ClockAnswer{Seq: q.Seq, Time: time.Now()}
					_ = agentapi.WriteFrame(conn, agentapi.FrameClock, a.Encode())
				}
			},
		},
		"it hangs":           {answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, warns: "clock may be behind", within: clockWait},
		"it is of an old VM": {answer: http.NotFound, warns: "clock may be behind"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLife(t, vm.StatusStarting, vm.StatusRunning, vm.StatusPaused)
				m := new(sleeper)
				in := &instance{life: l, machine: m, gone: newLatch()}
				var asked atomic.Int32
				in.agent = serveAgent(t, func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == agentapi.PathClock && m.resumed {
						asked.Add(1)
					}
					tc.answer(w, r)
				})
				l.current = in
				l.Stdio.Err = io.Discard
				began := time.Now()
				if err := (*commands)(l).Resume(t.Context()); err != nil {
					t.Error(err)
				}
				rec := l.vm.Record()
				if took := time.Since(began); took > tc.within || asked.Load() == 0 || rec.Status != vm.StatusRunning {
					t.Errorf("it took %s, and %d requests for the clock; it is %s", took, asked.Load(), rec.Status)
				}
				if tc.warns == "" && len(rec.Warnings) > 0 || tc.warns != "" && (len(rec.Warnings) != 1 || !strings.Contains(rec.Warnings[0].Reason, tc.warns)) {
					t.Errorf("warnings %+v", rec.Warnings)
				}
			})
		})
	}
}

// One who could not set the clock says nothing where somebody else has had the guest
// stand still since: he sets it later.
func TestWhoSaysThatTheClockIsBehind(t *testing.T) {
	for name, tc := range map[string]struct {
		saved bool // it stands still for a snapshot
		times int  // that the clock is to be set
		want  int  // warnings
	}{
		"one snapshot":                     {times: 1, want: 1},
		"while the next one is taken":      {saved: true, times: 1},
		"two snapshots, one upon the next": {times: 2, want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLife(t, vm.StatusStarting, vm.StatusRunning)
				in := &instance{life: l, machine: new(sleeper)}
				in.agent = serveAgent(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
				if tc.saved {
					in.capturing.Lock()
				}
				var all sync.WaitGroup
				for range tc.times {
					all.Go(func() { in.catchUp(t.Context()) })
					time.Sleep(clockWait / 2)
				}
				all.Wait()
				if got := len(l.vm.Record().Warnings); got != tc.want {
					t.Errorf("%d warnings, want %d", got, tc.want)
				}
			})
		})
	}
}
