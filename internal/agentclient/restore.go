package agentclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
	// that answers are late, and clockPause how long is waited between tries at
	// first; each pause is half as long again as the one before.
	clockPatience = time.Minute
	clockPause    = 20 * time.Millisecond
	maxClockPause = time.Second

	maxWrong = 15 // prompt answers with the wrong time that are enough
)

const (
	// restorePause is how long Restore sleeps after a connection that was lost.
	restorePause = 2 * time.Millisecond

	// restorePatience is how long it waits for an answer until it asks beside it,
	// and twice as long after each one that did not come. A guest that learns of
	// its new host while it has a request drops that without a word.
	restorePatience    = time.Second
	maxRestorePatience = time.Minute
)

// ErrClock: the guest's clock could not be set.
var ErrClock = errors.New("the guest's clock is not right")

// Restored is what a guest has confirmed.
type Restored struct {
	// Reset is how many TCP connections of the original were reset.
	Reset int
	// ClockError is how far the guest's clock may be off, at worst.
	ClockError time.Duration
	// Took is how long the guest was at it, and Asked how many answers were needed
	// until its clock was right.
	Took  time.Duration
	Asked int
}

// Restore makes a guest that was loaded from a snapshot a machine of its own:
// the first thing that is asked of it. It sets req.Time itself. It waits until
// the agent answers, for as long as ctx allows: connections that are opened
// while the guest finds out that it has another host are lost.
//
// An error of the guest's (*agentapi.Error) says what it could not do, ErrClock
// that its clock stayed wrong; such a guest is not to be used.
func (c *Client) Restore(ctx context.Context, req agentapi.RestoreRequest) (Restored, error) {
	var way time.Duration // that a request is likely to take
	var began time.Time   // with the first answer
	var took time.Duration
	pause, wrong := clockPause, 0
	for n := 0; ; n++ {
		r, err := c.restoreOnce(ctx, req, way)
		if err != nil {
			return Restored{}, fmt.Errorf("make the guest a machine of its own: %w", err)
		}
		if began.IsZero() {
			began, took = time.Now(), r.Took
		}
		limit, busy := clockGoal, n >= goalAttempts
		if busy {
			limit = clockLimit
		}
		if r.off.worst <= limit {
			return Restored{Reset: r.Reset, ClockError: r.off.worst, Took: took, Asked: n + 1}, nil
		}
		if r.off.delay <= clockLimit {
			wrong++ // and not because its answers are late
		}
		if wrong == maxWrong || time.Since(began) > clockPatience {
			return Restored{}, fmt.Errorf("make the guest a machine of its own: %w: it is off by up to %s", ErrClock, r.off.worst.Round(time.Millisecond))
		}
		way = r.off.delay / 2
		if busy {
			time.Sleep(pause)
			pause = min(pause+pause/2, maxClockPause)
		}
	}
}

// restoration is an answer and what it says of the clock.
type restoration struct {
	agentapi.RestoreResponse
	off offset
}

// restoreOnce asks until there is an answer. A request that has none after a while
// is not given up, for the guest may just be slow: another one is sent beside it.
func (c *Client) restoreOnce(ctx context.Context, req agentapi.RestoreRequest, way time.Duration) (restoration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		restoration
		err error
	}
	results := make(chan result)
	waiting := 0
	ask := func() {
		waiting++
		go func() {
			r, err := c.tryRestore(ctx, req, way)
			select {
			case results <- result{r, err}:
			case <-ctx.Done():
			}
		}()
	}
	ask()
	patience := restorePatience
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case r := <-results:
			var refused *agentapi.Error
			if r.err == nil || errors.Is(r.err, ErrAgent) || errors.As(r.err, &refused) {
				return r.restoration, r.err
			}
			if waiting--; waiting == 0 {
				time.Sleep(restorePause)
				ask()
			}
		case <-late.C:
			ask()
			patience = min(2*patience, maxRestorePatience)
			late.Reset(patience)
		case <-ctx.Done():
			return restoration{}, context.Cause(ctx)
		}
	}
}

func (c *Client) tryRestore(ctx context.Context, req agentapi.RestoreRequest, way time.Duration) (r restoration, err error) {
	sent := time.Now()
	req.Time = sent.Add(way)
	if err := c.call(ctx, http.MethodPost, agentapi.PathRestore, req, &r.RestoreResponse); err != nil {
		return r, err
	}
	return r, r.check(&req, sent, time.Now())
}

// check refuses what no agent answers.
func (r *restoration) check(req *agentapi.RestoreRequest, sent, received time.Time) error {
	switch {
	case r.Epoch != req.Epoch:
		return fmt.Errorf("%w: it answers another restore", ErrAgent)
	case r.Reset < 0:
		return fmt.Errorf("%w: %d connections", ErrAgent, r.Reset)
	case r.Took < 0 || r.Took > received.Sub(sent):
		return fmt.Errorf("%w: it had a request for %s that took %s", ErrAgent, r.Took, received.Sub(sent))
	}
	r.off = clockOffset(sent, received, r.Time, r.Took)
	return nil
}

// offset is what is known of another clock.
type offset struct {
	delay time.Duration // of the channel, both ways
	worst time.Duration // how far the clock is off, at most
}

// clockOffset compares a clock that was read just before its answer was sent,
// which took some part of what the channel took in all (Cristian's algorithm).
func clockOffset(sent, received, theirs time.Time, took time.Duration) offset {
	delay := received.Sub(sent) - took
	off := theirs.Sub(received.Add(-delay / 2)).Abs()
	return offset{delay: delay, worst: max(off, off+delay/2)} // a guest's time may be beyond all that can be added to
}
