package agent

import (
	"fmt"
	"net/http"
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

// clockBehind is how far the guest's clock may be behind after it has stood still
// before it is stepped.
const clockBehind = 10 * time.Millisecond

// postClock has the clock follow the host's after the guest has stood still.
func (a *agent) postClock(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	var req agentapi.ClockRequest
	if !decode(w, r, &req) {
		return
	}
	if err := a.restorer.catchUp(req.Time, arrived); err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	reply(w, http.StatusOK, agentapi.ClockResponse{Time: time.Now(), Took: time.Since(arrived)})
}

// catchUp steps the wall clock to what it was to be at that time, but never back.
func (r *restorer) catchUp(to, arrived time.Time) error {
	now := time.Now()
	to = to.Add(now.Sub(arrived))
	if to.Sub(now) < clockBehind {
		return nil
	}
	return r.setClock(to)
}

// setClock steps the wall clock.
func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock to %s: %w", t.UTC().Format(time.RFC3339Nano), err)
	}
	return nil
}
