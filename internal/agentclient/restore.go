package agentclient

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

const (
	// restorePause is how long is slept after a connection that was lost.
	restorePause = 2 * time.Millisecond

	// restorePatience is how long a guest may say nothing until it is asked beside,
	// and twice as long after each time. A guest that learns of its new host while
	// it has a request drops that without a word.
	restorePatience    = time.Second
	maxRestorePatience = time.Minute

	// aliveEvery is how often a guest is asked whose clock is right already.
	aliveEvery = restorePatience / 2
)

// Restored is what a guest has confirmed.
type Restored struct {
	// Reset is how many TCP connections of the original were reset.
	Reset int
	// ClockError is how far the guest's clock may be off, at worst.
	ClockError time.Duration
	// Took is how long the guest was at it, and Asked how often it was asked for its
	// clock until that was right.
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
//
// answers, unless it is nil, is called when the guest has answered for the first
// time: from then on others may ask it, too.
func (c *Client) Restore(ctx context.Context, req agentapi.RestoreRequest, answers func()) (Restored, error) {
	if answers == nil {
		answers = func() {}
	}
	s := &synced{
		client: c, path: agentapi.PathRestore, epoch: req.Epoch, restores: true, answers: sync.OnceFunc(answers),
		body: func(now time.Time) any { r := req; r.Time = now; return r },
	}
	resp, err := s.run(ctx)
	if err != nil {
		return Restored{}, fmt.Errorf("make the guest a machine of its own: %w", err)
	}
	worst, asked := s.clock.known()
	return Restored{Reset: resp.Reset, ClockError: worst, Took: resp.Took, Asked: asked}, nil
}

// SetClock sets the wall clock of a guest that has stood still, if it is behind. It
// returns how far the clock may still be behind, or was set too far, at worst.
func (c *Client) SetClock(ctx context.Context) (worst time.Duration, err error) {
	epoch := rand.Text()
	s := &synced{
		client: c, path: agentapi.PathClock, epoch: epoch, answers: func() {}, clock: clock{forward: true},
		body: func(now time.Time) any { return agentapi.ClockSync{Epoch: epoch, Time: now} },
	}
	if _, err := s.run(ctx); err != nil {
		return 0, fmt.Errorf("set the guest's clock: %w", err)
	}
	worst, _ = s.clock.known()
	return worst, nil
}

// synced is how a guest's clock is set, and a guest restored, over one stream or
// several.
type synced struct {
	client   *Client
	path     string
	epoch    string
	body     func(now time.Time) any
	restores bool   // the guest sends FrameRestored
	answers  func() // it has answered

	clock clock
	moved atomic.Int64 // counts frames, both ways
}

// run opens a stream, and others beside it while the guest says nothing: it is not
// given up, for it may just be slow. The first that comes to its end counts.
func (s *synced) run(ctx context.Context) (agentapi.RestoreResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		resp agentapi.RestoreResponse
		err  error
	}
	results := make(chan result)
	open := 0
	begin := func() {
		open++
		go func() {
			resp, err := s.talk(ctx)
			select {
			case results <- result{resp, err}:
			case <-ctx.Done():
			}
		}()
	}
	begin()
	patience, moved := restorePatience, s.moved.Load()
	silent := time.NewTimer(patience)
	defer silent.Stop()
	for {
		select {
		case r := <-results:
			if r.err == nil || isFinal(r.err) {
				return r.resp, r.err
			}
			if open--; open == 0 {
				time.Sleep(restorePause)
				begin()
			}
		case <-silent.C:
			if n := s.moved.Load(); n != moved {
				moved = n
			} else {
				begin()
				patience = min(2*patience, maxRestorePatience)
			}
			silent.Reset(patience)
		case <-ctx.Done():
			return agentapi.RestoreResponse{}, context.Cause(ctx)
		}
	}
}

// isFinal reports whether to ask again would be in vain.
func isFinal(err error) bool {
	var refused *agentapi.Error
	return errors.Is(err, ErrAgent) || errors.Is(err, ErrClock) || errors.As(err, &refused)
}

// late is a request's body that is made when it is sent.
type late func(time.Time) any

// MarshalJSON makes it.
func (l late) MarshalJSON() ([]byte, error) { return json.Marshal(l(time.Now())) }

// talk is one stream: it ends when the clock is right, and the guest restored.
func (s *synced) talk(ctx context.Context) (resp agentapi.RestoreResponse, err error) {
	conn, r, err := s.client.upgraded(ctx, s.path, late(s.body))
	if err != nil {
		return resp, err
	}
	s.answers()
	s.moved.Add(1)
	defer closeOnDone(ctx, conn)()
	defer func() { _ = conn.Close() }()
	over := make(chan struct{})
	defer close(over)
	frames := make(chan frame)
	go readFrames(r, frames, over)
	var (
		out      = agentapi.NewFrameWriter(conn)
		q        agentapi.ClockRequest // the last; it is answered when ask is not nil
		sent     time.Time
		restored = !s.restores
		ask      = time.After(0)
	)
	for !restored || !s.clock.isRight() {
		select {
		case <-ask:
			ask = nil
			s.moved.Add(1)
			q, sent = s.clock.next(), time.Now()
			if err := out.Write(agentapi.FrameClock, q.Encode()); err != nil {
				return resp, fmt.Errorf("ask for the clock: %w", err)
			}
		case f := <-frames:
			s.moved.Add(1)
			switch {
			case f.err != nil:
				return resp, f.err
			case f.kind == agentapi.FrameRestored && s.restores:
				if resp, err = parseRestored(f.payload, s.epoch); err != nil {
					return resp, err
				}
				restored = true
			case f.kind == agentapi.FrameClock:
				a, err := agentapi.ParseClockAnswer(f.payload)
				if err == nil && (a.Seq != q.Seq || ask != nil) {
					err = errors.New("nobody has asked for the clock")
				}
				if err != nil {
					return resp, fmt.Errorf("%w: %w", ErrAgent, err)
				}
				pause, err := s.clock.add(sent, f.at, a)
				if err != nil {
					return resp, err
				}
				if s.clock.isRight() {
					pause = aliveEvery
				}
				ask = time.After(pause)
			default:
				return resp, fmt.Errorf("%w: frame %d of the clock's stream", ErrAgent, f.kind)
			}
		case <-ctx.Done():
			return resp, context.Cause(ctx)
		}
	}
	return resp, nil
}

// frame is one that has come.
type frame struct {
	kind    agentapi.FrameType
	payload []byte
	at      time.Time
	err     error
}

func readFrames(r io.Reader, frames chan<- frame, over <-chan struct{}) {
	for in := agentapi.NewFrameReader(r); ; {
		var f frame
		f.kind, f.payload, f.err = in.Next()
		f.at = time.Now()
		f.payload = append([]byte(nil), f.payload...)
		if errors.Is(f.err, agentapi.ErrFrame) {
			f.err = fmt.Errorf("%w: %w", ErrAgent, f.err)
		}
		select {
		case frames <- f:
		case <-over:
			return
		}
		if f.err != nil {
			return
		}
	}
}

// parseRestored refuses what no agent answers.
func parseRestored(p []byte, epoch string) (agentapi.RestoreResponse, error) {
	var r agentapi.RestoreResponse
	if err := json.Unmarshal(p, &r); err != nil {
		return r, fmt.Errorf("%w: %w", ErrAgent, err)
	}
	switch {
	case r.Epoch != epoch:
		return r, fmt.Errorf("%w: it answers another restore", ErrAgent)
	case r.Error != "":
		return r, &agentapi.Error{Message: clean(r.Error)}
	case r.Reset < 0:
		return r, fmt.Errorf("%w: %d connections", ErrAgent, r.Reset)
	case r.Took < 0:
		return r, fmt.Errorf("%w: it was at it for %s", ErrAgent, r.Took)
	}
	return r, nil
}
