package agentclient

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// restorable is a guest that does nothing but set its clock, over a channel
// that takes its time.
type restorable struct {
	there, back time.Duration // what the channel takes
	works       time.Duration // what the guest takes
	rate        float64       // of its clock's seconds to ours, less 1

	mu    sync.Mutex
	set   time.Time     // when its clock was set
	clock time.Duration // ahead of the host's, then
	shift time.Duration
	asked atomic.Int32
}

// ahead is how far the guest's clock is ahead of the host's. The caller has mu.
func (g *restorable) ahead() time.Duration {
	return g.clock + time.Duration(g.rate*float64(time.Since(g.set)))
}

func (g *restorable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var req agentapi.RestoreRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	time.Sleep(g.there)
	g.mu.Lock()
	if g.set.IsZero() { // once in an epoch
		g.set, g.clock = time.Now(), time.Until(req.Time)
	}
	g.mu.Unlock()
	time.Sleep(g.back)
	conn := hijack(w)
	if conn == nil {
		return
	}
	defer func() { _ = conn.Close() }()
	var out sync.Mutex
	send := func(t agentapi.FrameType, p []byte) {
		out.Lock()
		defer out.Unlock()
		_ = agentapi.WriteFrame(conn, t, p)
	}
	var done sync.WaitGroup
	defer done.Wait()
	done.Go(func() {
		time.Sleep(g.works)
		b, _ := json.Marshal(agentapi.RestoreResponse{Epoch: req.Epoch, Took: g.works, Reset: 3})
		send(agentapi.FrameRestored, b)
	})
	for in := agentapi.NewFrameReader(conn); ; {
		_, p, err := in.Next()
		if err != nil {
			return
		}
		q, err := agentapi.ParseClockRequest(p)
		if err != nil {
			return
		}
		g.asked.Add(1)
		time.Sleep(g.there)
		g.mu.Lock()
		g.clock += q.Shift - g.shift
		g.shift = q.Shift
		a := agentapi.ClockAnswer{Seq: q.Seq, Shift: q.Shift, Time: time.Now().Add(g.ahead())}
		g.mu.Unlock()
		time.Sleep(g.back)
		send(agentapi.FrameClock, a.Encode())
	}
}

// hijack takes a request's connection over, as the agent does; nil: there is none.
func hijack(w http.ResponseWriter) net.Conn {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+agentapi.StreamProtocol+"\r\n\r\n")
	return conn
}

// serveGuest answers each connection of a client by HTTP.
func serveGuest(t *testing.T, h http.Handler) *Client {
	t.Helper()
	l := &chanListener{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: patience}
	served := make(chan struct{})
	go func() { _ = srv.Serve(l); close(served) }()
	t.Cleanup(func() { _ = srv.Close(); <-served })
	c := New(l.dial)
	t.Cleanup(c.Close)
	return c
}

type chanListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *chanListener) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *chanListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *chanListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *chanListener) Addr() net.Addr { return &net.UnixAddr{Name: "guest"} }

func request() agentapi.RestoreRequest {
	return agentapi.RestoreRequest{ClockSync: agentapi.ClockSync{Epoch: "e1"}, Entropy: make([]byte, agentapi.MinEntropy)}
}

// A guest's clock is right although a slow channel brings the time late.
func TestRestoreSetsTheClock(t *testing.T) {
	for name, g := range map[string]*restorable{
		"at once":            {},
		"a slow guest":       {works: 200 * time.Millisecond},
		"a slow channel":     {there: 15 * time.Millisecond, back: 15 * time.Millisecond},
		"slow in one way":    {there: 35 * time.Millisecond},
		"slow in both, late": {there: 30 * time.Millisecond, back: 15 * time.Millisecond, works: 50 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := serveGuest(t, g)
			r, err := c.Restore(t.Context(), request(), nil)
			if err != nil || r.Reset != 3 {
				t.Fatalf("%+v, %v", r, err)
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.clock.Abs() > clockLimit || r.ClockError > clockLimit || g.clock.Abs() > r.ClockError+time.Millisecond {
				t.Errorf("the guest's clock is off by %s, said to be at most %s", g.clock, r.ClockError)
			}
		})
	}
}

func TestRestoreGivesUpOnAClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &restorable{there: 60 * time.Millisecond, back: 60 * time.Millisecond}
		began := time.Now()
		_, err := serveGuest(t, g).Restore(t.Context(), request(), nil)
		if !errors.Is(err, ErrClock) || g.asked.Load() <= goalAttempts || g.asked.Load() > 100 {
			t.Errorf("%v, after %d requests", err, g.asked.Load())
		}
		if took := time.Since(began); took < clockPatience || took > clockPatience+10*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// Connections are lost while a guest finds out that it has another host.
func TestRestoreTriesAgain(t *testing.T) {
	t.Parallel()
	g := new(restorable)
	healthy := serveGuest(t, g)
	const refused = 20
	var dials atomic.Int32
	c := New(func(ctx context.Context) (net.Conn, error) {
		switch n := dials.Add(1); {
		case n <= refused:
			return nil, io.EOF
		case n == refused+1: // a connection that is closed when the request has come
			ours, theirs := net.Pipe()
			go func() { readRequest(theirs); _ = theirs.Close() }()
			return ours, nil
		case n == refused+2: // one that nobody knows any more
			ours, theirs := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			return ours, nil
		}
		return healthy.dial(ctx)
	})
	defer c.Close()
	start := time.Now()
	answered := 0
	if r, err := c.Restore(t.Context(), request(), func() { answered++ }); err != nil || r.Reset != 3 || answered != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if n := dials.Load(); n != refused+3 {
		t.Errorf("%d dials", n)
	}
	if took := time.Since(start); took > patience { // many that failed at once do not make it patient
		t.Errorf("it took %s", took)
	}
}

// speaking is a guest that answers a restore with frames, whatever it is asked.
func speaking(frames ...[]byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		conn := hijack(w)
		if conn == nil {
			return
		}
		defer func() { _ = conn.Close() }()
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		for _, f := range frames {
			if _, err := conn.Write(f); err != nil {
				return
			}
		}
		time.Sleep(100 * time.Millisecond) // what comes too late is not missed
	})
}

func frameOf(t agentapi.FrameType, p string) []byte {
	b, _ := agentapi.AppendFrame(nil, t, []byte(p))
	return b
}

func TestRestoreRefusesLies(t *testing.T) {
	t.Parallel()
	for name, f := range map[string][]byte{
		"another epoch":   frameOf(agentapi.FrameRestored, `{"epoch":"e2"}`),
		"no epoch":        frameOf(agentapi.FrameRestored, `{}`),
		"negative count":  frameOf(agentapi.FrameRestored, `{"epoch":"e1","reset":-1}`),
		"negative time":   frameOf(agentapi.FrameRestored, `{"epoch":"e1","took":-1}`),
		"no JSON":         frameOf(agentapi.FrameRestored, `epoch`),
		"another frame":   frameOf(agentapi.FrameStdout, "x"),
		"an unknown one":  frameOf(77, "x"),
		"a short answer":  frameOf(agentapi.FrameClock, "x"),
		"another request": frameOf(agentapi.FrameClock, strings.Repeat("x", 24)),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := serveGuest(t, speaking(f)).Restore(t.Context(), request(), nil); !errors.Is(err, ErrAgent) {
				t.Errorf("got %v, want ErrAgent", err)
			}
		})
	}
	// A clock that cannot be right, however often it is set.
	for _, at := range []time.Time{time.Unix(0, math.MinInt64), time.Unix(0, math.MaxInt64), time.Unix(0, 0)} {
		a := agentapi.ClockAnswer{Seq: 1, Time: at}
		if _, err := serveGuest(t, speaking(frameOf(agentapi.FrameClock, string(a.Encode())))).Restore(t.Context(), request(), nil); !errors.Is(err, ErrClock) {
			t.Errorf("%s: got %v, want ErrClock", at, err)
		}
	}
	// What the guest could not do is said in its own words, once.
	for name, c := range map[string]*Client{
		"at once": newClient(t, answers(answer(409, `{"error":"reseed: \u001b[31mno"}`))),
		"later":   serveGuest(t, speaking(frameOf(agentapi.FrameRestored, `{"epoch":"e1","error":"reseed: \u001b[31mno"}`))),
	} {
		_, err := c.Restore(t.Context(), request(), nil)
		var refused *agentapi.Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "reseed: ·[31mno") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestClock(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	start := time.Unix(1_000_000, 0)
	type exchange struct {
		there, back int // ms
		worst       int // afterwards
		right       bool
	}
	for name, tc := range map[string]struct {
		off       int // of the guest's clock at first, ms
		exchanges []exchange
	}{
		"quick":                       {1, []exchange{{2, 2, 3, true}}},
		"off, and then not":           {300, []exchange{{2, 2, 302, false}, {2, 2, 2, true}}},
		"slow, but right in the end":  {-400, []exchange{{40, 40, 440, false}, {40, 40, 40, true}}},
		"too slow, once":              {0, []exchange{{60, 60, 60, false}, {500, 45, 60, false}, {30, 300, 53, false}, {400, 400, 38, true}}},
		"slow this way and that way":  {0, []exchange{{10, 300, 300, false}, {300, 10, 155, false}, {300, 300, 10, true}}},
		"the better answer is kept":   {200, []exchange{{25, 25, 225, false}, {400, 400, 25, true}}},
		"the goal only of quick ones": {0, []exchange{{45, 45, 45, true}}},
	} {
		var c clock
		now := start
		for i, e := range tc.exchanges {
			q := c.next()
			shifted := q.Shift
			sent, read, received := now, now.Add(ms(e.there)), now.Add(ms(e.there+e.back))
			if _, err := c.add(sent, received, agentapi.ClockAnswer{Seq: q.Seq, Shift: shifted, Time: read.Add(ms(tc.off) + shifted)}); err != nil {
				t.Fatal(err)
			}
			worst, _ := c.known()
			if off := (ms(tc.off) + shifted).Abs(); off > worst {
				t.Errorf("%s: off by %s after exchange %d, said to be %s at worst", name, off, i+1, worst)
			}
			if worst.Round(time.Millisecond) != ms(e.worst) || c.isRight() != e.right {
				t.Errorf("%s: exchange %d: %s at worst, right: %t; want %d ms, %t", name, i+1, worst, c.isRight(), e.worst, e.right)
			}
			now = received
		}
	}
}

// A clock that was right and is not any more is set again.
func TestClockIsStepped(t *testing.T) {
	var c clock
	now := time.Unix(1_000_000, 0)
	answer := func(ahead, delay time.Duration) {
		t.Helper()
		q := c.next()
		if _, err := c.add(now, now.Add(delay), agentapi.ClockAnswer{Seq: q.Seq, Shift: q.Shift, Time: now.Add(delay/2 + ahead + q.Shift)}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(delay + time.Second)
	}
	answer(0, 4*time.Millisecond)
	if !c.isRight() {
		t.Fatal("not right at first")
	}
	answer(time.Millisecond, 700*time.Millisecond) // which says little
	if worst, _ := c.known(); !c.isRight() || worst > clockGoal {
		t.Errorf("right: %t, %s at worst after a late answer", c.isRight(), worst)
	}
	answer(-5*time.Millisecond, 4*time.Millisecond)
	if worst, _ := c.known(); !c.isRight() || worst > clockGoal {
		t.Errorf("right: %t, %s at worst, of 5 ms", c.isRight(), worst)
	}
	answer(400*time.Millisecond, 700*time.Millisecond)
	if worst, _ := c.known(); c.isRight() {
		t.Errorf("right, and %s off at worst", worst)
	}
	answer(400*time.Millisecond, 4*time.Millisecond)
	answer(400*time.Millisecond, 4*time.Millisecond)
	if worst, _ := c.known(); !c.isRight() || worst > clockGoal {
		t.Errorf("right: %t, %s at worst in the end", c.isRight(), worst)
	}
}

// A guest that has stood still is not set back: a clock that is ahead is so for
// another reason. Only what was too much is taken back.
func TestClockThatOnlyGoesForward(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	start := time.Unix(1_000_000, 0)
	for name, tc := range map[string]struct {
		off       time.Duration // of the guest's clock at first
		exchanges [][2]int      // there and back, ms
		shifts    []time.Duration
	}{
		"right":                {0, [][2]int{{2, 2}}, []time.Duration{0}},
		"ahead":                {300 * time.Millisecond, [][2]int{{2, 2}}, []time.Duration{0}},
		"ahead, a slow answer": {300 * time.Millisecond, [][2]int{{400, 400}, {2, 2}}, []time.Duration{0, 0}},
		"ahead by hours":       {3 * time.Hour, [][2]int{{2, 2}}, []time.Duration{0}},
		"at the end of time":   {time.Unix(0, math.MaxInt64).Sub(start) - time.Hour, [][2]int{{2, 2}}, []time.Duration{0}},
		"behind":               {-ms(300), [][2]int{{2, 2}, {2, 2}}, []time.Duration{0, ms(300)}},
		"set too far":          {-ms(10), [][2]int{{10, 300}, {300, 10}, {10, 300}}, []time.Duration{0, ms(155), ms(10)}},
	} {
		c := clock{forward: true}
		now := start
		for i, e := range tc.exchanges {
			q := c.next()
			if q.Shift.Round(time.Millisecond) != tc.shifts[i] {
				t.Errorf("%s: request %d shifts it by %s, want %s", name, i+1, q.Shift, tc.shifts[i])
			}
			sent, read, received := now, now.Add(ms(e[0])), now.Add(ms(e[0]+e[1]))
			if _, err := c.add(sent, received, agentapi.ClockAnswer{Seq: q.Seq, Shift: q.Shift, Time: read.Add(tc.off + q.Shift)}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if worst, _ := c.known(); c.isRight() != (i == len(tc.exchanges)-1) || -(tc.off+q.Shift) > worst {
				t.Errorf("%s: exchange %d: right: %t, behind by %s at worst", name, i+1, c.isRight(), worst)
			}
			now = received
		}
	}
	c := clock{forward: true}
	if _, err := c.add(start, start, agentapi.ClockAnswer{Time: start.Add(-2 * maxShift)}); !errors.Is(err, ErrClock) {
		t.Errorf("of one that is hours behind, although it was set: %v", err)
	}
}

// A clock that goes at another rate excludes its own past.
func TestRestoreOfAFastClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &restorable{there: 5 * time.Millisecond, back: 60 * time.Millisecond, rate: 0.05}
		r, err := serveGuest(t, g).Restore(t.Context(), request(), nil)
		g.mu.Lock()
		defer g.mu.Unlock()
		if err != nil || g.ahead().Abs() > clockLimit {
			t.Errorf("%+v, %v: it is ahead by %s", r, err, g.ahead())
		}
	})
}

// What a slow guest answers first counts, however late it comes.
func TestRestoreOfASlowGuest(t *testing.T) {
	t.Parallel()
	g := new(restorable)
	var first sync.Once
	var streams atomic.Int32
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		streams.Add(1)
		stuck := true
		first.Do(func() { stuck = false })
		if stuck { // what is asked beside it
			_, _ = io.Copy(io.Discard, r.Body) // only then its end shows
			<-r.Context().Done()
			return
		}
		time.Sleep(3 * restorePatience / 2)
		g.ServeHTTP(w, r)
	})
	r, err := serveGuest(t, slow).Restore(t.Context(), request(), nil)
	if err != nil || r.Reset != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	if n := streams.Load(); n != 2 {
		t.Errorf("%d streams, want one more beside the first", n)
	}
}

// A guest that works for long is asked for its clock meanwhile.
func TestRestoreOfABusyGuest(t *testing.T) {
	t.Parallel()
	var streams atomic.Int32
	g := &restorable{works: 5 * restorePatience / 2}
	busy := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		streams.Add(1)
		g.ServeHTTP(w, r)
	})
	r, err := serveGuest(t, busy).Restore(t.Context(), request(), nil)
	if err != nil || r.Took != g.works || r.Asked > 10 {
		t.Errorf("%+v, %v", r, err)
	}
	if n := streams.Load(); n != 1 {
		t.Errorf("%d streams", n)
	}
}
