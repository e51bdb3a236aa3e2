package agentclient

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// How far a guest's clock may be off the host's, at worst. The first of the two
// is what is tried for; a host on which no answer is that quick gets by with
// the second.
const (
	clockGoal  = 20 * time.Millisecond
	clockLimit = 50 * time.Millisecond

	goalAttempts = 3 // for clockGoal

	// clockPatience is how long is tried for clockLimit, on a host that is so busy
	// that answers are late, and clockPause how long is waited between tries then,
	// at first; each pause is half as long again as the one before.
	clockPatience = time.Minute
	clockPause    = 20 * time.Millisecond
	maxClockPause = time.Second

	// clockDrift is what two clocks may go apart in a time of it all: as much as
	// NTP makes one go faster at most, 500 ppm (adjtimex(2)).
	clockDrift = 2000

	maxWrong = 15 // prompt answers with the wrong time that are enough

	// maxShift is how far off a clock can be that a guest has set to the time of a
	// request: no request is on its way for longer.
	maxShift = time.Hour
)

// ErrClock: the guest's clock could not be set.
var ErrClock = errors.New("the guest's clock is not right")

// clock is what is known of a guest's clock, from all that the guest has
// answered in one epoch. It is safe for concurrent use.
//
// A guest reads its clock some time between a request and its answer (Cristian's
// algorithm). Each answer so gives bounds for what its clock is ahead of the
// host's; the truth is within all of them (Marzullo's).
type clock struct {
	forward bool // it is not set back, but for what it was set forward too far

	mu     sync.Mutex
	seq    uint64
	shift  time.Duration // that was asked for last
	lo, hi time.Duration // what the clock is ahead, were it not shifted
	last   time.Time     // the answer that this is known from
	worst  time.Duration // how far it was off, at most, after the last answer
	asked  int           // answers
	wrong  int           // answers that were prompt, and did not fit
	began  time.Time     // the first answer
	right  bool
}

// next is the next request: to have the clock where the answers so far put it.
func (c *clock) next() agentapi.ClockRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	if c.asked > 0 && !c.right {
		if c.shift = -(c.lo + (c.hi-c.lo)/2); c.forward {
			c.shift = max(c.shift, 0)
		}
	}
	return agentapi.ClockRequest{Seq: c.seq, Shift: c.shift}
}

// add takes an answer into account, and returns how long to wait until the next
// request. ErrClock says that there is no hope.
func (c *clock) add(sent, received time.Time, a agentapi.ClockAnswer) (pause time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delay := received.Sub(sent)
	if c.asked == 0 {
		c.began = received
	}
	lo, hi := a.Time.Sub(received), a.Time.Sub(sent) // of an absurd time, the largest duration there is
	if c.forward {                                   // how far ahead it is does not matter
		lo, hi = min(lo, maxShift), min(hi, maxShift)
	}
	if lo.Abs() > maxShift || a.Shift.Abs() > maxShift {
		c.wrong = maxWrong
	} else {
		c.narrow(lo-a.Shift, hi-a.Shift, received)
		ahead := c.hi + a.Shift
		if c.forward {
			ahead = min(ahead, a.Shift) // more is not of our making
		}
		c.worst = max(ahead, -(c.lo + a.Shift))
	}
	c.asked++
	limit := clockLimit
	if c.asked <= goalAttempts && delay < 2*clockGoal && !c.right {
		limit = clockGoal
	}
	// What was right can turn out to be wrong: then it is set again.
	c.right = (a.Seq == c.seq || c.right) && c.wrong < maxWrong && c.worst <= limit
	if c.right {
		return 0, nil
	}
	if delay <= clockLimit && c.asked > goalAttempts {
		c.wrong++ // and not because its answers are late
	}
	if c.wrong >= maxWrong || received.Sub(c.began) > clockPatience {
		return 0, fmt.Errorf("%w: it is off by up to %s", ErrClock, max(c.worst, lo.Abs()).Round(time.Millisecond))
	}
	for range c.asked - goalAttempts {
		pause = min(max(pause+pause/2, clockPause), maxClockPause)
	}
	return pause, nil
}

// narrow adds bounds. If they exclude those before, the clocks do not go at the
// same rate, or somebody has set one: the newest count.
func (c *clock) narrow(lo, hi time.Duration, at time.Time) {
	if c.asked > 0 {
		drift := at.Sub(c.last).Abs() / clockDrift
		if oldLo, oldHi := c.lo-drift, c.hi+drift; lo <= oldHi && hi >= oldLo {
			lo, hi = max(lo, oldLo), min(hi, oldHi)
		}
	}
	c.lo, c.hi, c.last = lo, hi, at
}

func (c *clock) isRight() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.right
}

// known is how far the clock is off, at worst, and how often it was asked for.
func (c *clock) known() (worst time.Duration, asked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.worst, c.asked
}
