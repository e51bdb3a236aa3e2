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

	mu    sync.Mutex
	clock time.Duration // ahead of the host's
	asked atomic.Int32
}

func (g *restorable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.asked.Add(1)
	var req agentapi.RestoreRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	time.Sleep(g.there)
	arrived := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clock = req.Time.Sub(arrived)
	time.Sleep(g.works)
	resp := agentapi.RestoreResponse{Epoch: req.Epoch, Time: time.Now().Add(g.clock), Took: time.Since(arrived), Reset: 3}
	time.Sleep(g.back)
	_ = json.NewEncoder(w).Encode(resp)
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
	return agentapi.RestoreRequest{Epoch: "e1", Entropy: make([]byte, agentapi.MinEntropy)}
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
			r, err := c.Restore(t.Context(), request())
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
		_, err := serveGuest(t, g).Restore(t.Context(), request())
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
	if r, err := c.Restore(t.Context(), request()); err != nil || r.Reset != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	if n := dials.Load(); n != refused+3 {
		t.Errorf("%d dials", n)
	}
	if took := time.Since(start); took > patience { // many that failed at once do not make it patient
		t.Errorf("it took %s", took)
	}
}

func TestRestoreRefusesLies(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Format(time.RFC3339Nano)
	for name, body := range map[string]string{
		"another epoch":      `{"epoch":"e2","time":"` + now + `"}`,
		"no epoch":           `{"time":"` + now + `"}`,
		"negative count":     `{"epoch":"e1","reset":-1,"time":"` + now + `"}`,
		"negative time":      `{"epoch":"e1","took":-1,"time":"` + now + `"}`,
		"longer than it was": `{"epoch":"e1","took":3600000000000,"time":"` + now + `"}`,
		"no time":            `{"epoch":"e1","time":"soon"}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := newClient(t, answers(answer(200, body))).Restore(t.Context(), request()); !errors.Is(err, ErrAgent) {
				t.Errorf("got %v, want ErrAgent", err)
			}
		})
	}
	// A clock that cannot be right, however often it is set.
	for _, at := range []string{"0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"} {
		g := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"epoch":"e1","time":"`+at+`"}`)
		})
		if _, err := serveGuest(t, g).Restore(t.Context(), request()); !errors.Is(err, ErrClock) {
			t.Errorf("%s: got %v, want ErrClock", at, err)
		}
	}
	// What the guest could not do is said in its own words, once.
	_, err := newClient(t, answers(answer(409, `{"error":"reseed: \u001b[31mno"}`))).Restore(t.Context(), request())
	var refused *agentapi.Error
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "reseed: ·[31mno") {
		t.Errorf("got %v", err)
	}
}

func TestClockOffset(t *testing.T) {
	sent := time.Unix(1000, 0)
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for _, tc := range []struct {
		waited, took, theirs int // of theirs: after sent
		want                 offset
	}{
		{10, 0, 5, offset{ms(10), ms(5)}},
		{10, 10, 10, offset{0, 0}},
		{110, 100, 105, offset{ms(10), ms(5)}},
		{110, 100, 100, offset{ms(10), ms(10)}},
		{10, 0, -995, offset{ms(10), ms(1005)}},
	} {
		if got := clockOffset(sent, sent.Add(ms(tc.waited)), sent.Add(ms(tc.theirs)), ms(tc.took)); got != tc.want {
			t.Errorf("%+v: got %+v", tc, got)
		}
	}
	for _, at := range []time.Time{{}, time.Unix(math.MaxInt64/2, 0)} {
		if got := clockOffset(sent, sent.Add(ms(10)), at, 0); got.worst < time.Hour {
			t.Errorf("%s: %+v", at, got)
		}
	}
}

// The answer to the first request counts, however late it comes.
func TestRestoreOfASlowGuest(t *testing.T) {
	t.Parallel()
	g := &restorable{works: 2 * restorePatience}
	var first sync.Once
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stuck := true
		first.Do(func() { stuck = false })
		if stuck { // what is asked beside it
			g.asked.Add(1)
			_, _ = io.Copy(io.Discard, r.Body) // only then its end shows
			<-r.Context().Done()
			return
		}
		g.ServeHTTP(w, r)
	})
	c := serveGuest(t, slow)
	// The clock of such a guest may be right or not: this is about the answer.
	r, err := c.restoreOnce(t.Context(), request(), 0)
	if err != nil || r.Reset != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	if n := g.asked.Load(); n != 2 {
		t.Errorf("%d requests, want one more beside the first", n)
	}
}
