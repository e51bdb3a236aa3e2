package agentclient

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// paused is a guest that has stood still, behind a channel that takes its time.
type paused struct {
	behind      time.Duration
	there, back time.Duration // what the channel takes
	fixed       bool          // nobody can set its clock
	asked       int
}

func (g *paused) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.asked++
	var req agentapi.ClockRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	time.Sleep(g.there)
	if late := req.Time.Sub(time.Now().Add(-g.behind)); late > 0 && !g.fixed {
		g.behind -= late
	}
	_ = json.NewEncoder(w).Encode(agentapi.ClockResponse{Time: time.Now().Add(-g.behind)})
	_ = http.NewResponseController(w).Flush()
	time.Sleep(g.back)
}

func TestCatchUp(t *testing.T) {
	const ms = time.Millisecond
	for name, tc := range map[string]struct {
		guest  paused
		behind time.Duration // at most, afterwards
		asked  int
		err    error
	}{
		"right":                {guest: paused{}, asked: 1},
		"behind":               {guest: paused{behind: time.Hour}, asked: 1},
		"ahead stays so":       {guest: paused{behind: -time.Hour}, behind: -time.Hour, asked: 1},
		"a slow channel":       {guest: paused{behind: time.Hour, there: 100 * ms}, behind: 50 * ms, asked: 2},
		"slow, and not behind": {guest: paused{there: 500 * ms}, asked: 1},
		"cannot be set":        {guest: paused{behind: time.Hour, fixed: true}, behind: time.Hour, asked: goalAttempts, err: ErrClock},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := tc.guest
				err := serveGuest(t, &g).CatchUp(t.Context())
				if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) || g.asked != tc.asked || g.behind > tc.behind {
					t.Errorf("%v after %d requests, behind by %s", err, g.asked, g.behind)
				}
			})
		})
	}
}

func TestCatchUpRefusesLies(t *testing.T) {
	for _, body := range []string{`{"took":-1}`, `{"took":3600000000000}`, `{"time":"soon"}`} {
		g := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
		if err := serveGuest(t, g).CatchUp(t.Context()); !errors.Is(err, ErrAgent) {
			t.Errorf("%s: %v, want ErrAgent", body, err)
		}
	}
}
