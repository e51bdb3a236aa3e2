package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// clockSlack is how far the guest's clock may be off a plan's time before it
// is stepped: a plan does not say how long it was on its way.
const clockSlack = time.Second

// followClock steps the wall clock to the host's time as it was when a plan was
// made.
func followClock(t time.Time) error {
	if t.IsZero() || time.Since(t).Abs() < clockSlack {
		return nil
	}
	return setClock(t)
}

// setClock steps the wall clock.
func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock to %s: %w", t.UTC().Format(time.RFC3339Nano), err)
	}
	return nil
}

// shiftClock steps the wall clock by d: exactly, however long this takes.
func shiftClock(d time.Duration) error {
	sec := d.Truncate(time.Second)
	if sec > d {
		sec -= time.Second // nanoseconds are not negative
	}
	tx := unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO}
	tx.Time.Sec, tx.Time.Usec = int64(sec/time.Second), int64(d-sec)
	if _, err := unix.Adjtimex(&tx); err != nil {
		return fmt.Errorf("shift the clock by %s: %w", d, err)
	}
	return nil
}

// wallClock is the guest's, as a host sets it after the guest has stood still.
type wallClock struct {
	set   func(time.Time) error
	shift func(time.Duration) error

	mu      sync.Mutex
	epoch   string
	seq     uint64        // of the last request
	shifted time.Duration // since it was set for this epoch
}

// clockBehind is how far the clock of a guest that has stood still may be behind
// before it is set. It is never set back: it may not have stood still itself.
const clockBehind = 10 * time.Millisecond

// sync sets the clock to the host's, as that was when the request arrived; once,
// for another request of the same epoch may have been longer on its way.
func (c *wallClock) sync(req *agentapi.ClockSync, arrived time.Time, forward bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch == req.Epoch {
		return nil
	}
	now := time.Now()
	if to := req.Time.Add(now.Sub(arrived)); !forward || to.Sub(now) >= clockBehind {
		if err := c.set(to); err != nil {
			return err
		}
	}
	c.epoch, c.seq, c.shifted = req.Epoch, 0, 0
	return nil
}

var errOldEpoch = errors.New("the clock was set by another host since")

func (c *wallClock) ask(epoch string, req agentapi.ClockRequest) (agentapi.ClockAnswer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch != epoch {
		return agentapi.ClockAnswer{}, errOldEpoch
	}
	if req.Seq > c.seq {
		if d := req.Shift - c.shifted; d != 0 {
			if err := c.shift(d); err != nil {
				return agentapi.ClockAnswer{}, err
			}
		}
		c.seq, c.shifted = req.Seq, req.Shift
	}
	return agentapi.ClockAnswer{Seq: req.Seq, Shift: c.shifted, Time: time.Now()}, nil
}

func checkSync(req *agentapi.ClockSync) error {
	switch {
	case req.Epoch == "" || len(req.Epoch) > agentapi.MaxEpoch:
		return fmt.Errorf("epoch of %d bytes, want 1 to %d", len(req.Epoch), agentapi.MaxEpoch)
	case req.Time.IsZero():
		return errors.New("no time given")
	}
	return nil
}

func (a *agent) postClock(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	var req agentapi.ClockSync
	if !decode(w, r, &req) {
		return
	}
	if err := checkSync(&req); err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	a.serveClock(w, r, &req, arrived, nil)
}

// serveClock sets the clock and answers for it until the host hangs up. Beside
// that it does what else there is to do, until then as well, and sends what came
// of it.
func (a *agent) serveClock(w http.ResponseWriter, r *http.Request, req *agentapi.ClockSync, arrived time.Time, beside func(context.Context) *agentapi.RestoreResponse) {
	if err := a.clock.sync(req, arrived, beside == nil); err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	conn, err := upgrade(w, r)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	var out sync.Mutex // one frame at a time
	send := func(t agentapi.FrameType, p []byte) error {
		out.Lock()
		defer out.Unlock()
		return agentapi.WriteFrame(conn, t, p)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	var done sync.WaitGroup
	defer done.Wait()
	defer cancel()
	if beside != nil {
		done.Go(func() {
			if b, err := json.Marshal(beside(ctx)); err == nil {
				_ = send(agentapi.FrameRestored, b) // the host asks again
			}
		})
	}
	for in := agentapi.NewFrameReader(conn); ; {
		t, p, err := in.Next()
		if err != nil || t != agentapi.FrameClock {
			return
		}
		q, err := agentapi.ParseClockRequest(p)
		if err != nil {
			return
		}
		answer, err := a.clock.ask(req.Epoch, q)
		if err != nil {
			a.log.Warn("the host asks for the clock", "error", err)
			return
		}
		if send(agentapi.FrameClock, answer.Encode()) != nil {
			return
		}
	}
}
