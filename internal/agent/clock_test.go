package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentclient"
)

// A clock that is behind is stepped forward, by what the request was on its way
// more; none is ever stepped back.
func TestCatchUp(t *testing.T) {
	const slack = 5 * time.Second // of a busy host
	for name, tc := range map[string]struct {
		ahead, late time.Duration // the host's clock, and the request
		steps       bool
	}{
		"behind":                {ahead: time.Hour, steps: true},
		"behind, and late":      {ahead: time.Hour, late: time.Minute, steps: true},
		"right":                 {},
		"ahead":                 {ahead: -time.Hour},
		"a little behind":       {ahead: clockBehind / 2},
		"a late one, passed by": {ahead: -time.Minute, late: time.Second},
	} {
		k := new(fakeKernel)
		r := &restorer{setClock: k.setClock}
		now := time.Now()
		if err := r.catchUp(now.Add(tc.ahead).Round(0), now.Add(-tc.late)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if (len(k.steps) > 0) != tc.steps || tc.steps && (k.steps[0]-tc.ahead-tc.late).Abs() > slack {
			t.Errorf("%s: stepped by %v", name, k.steps)
		}
	}
}

// The host asks for it over the channel.
func TestCatchUpOverTheChannel(t *testing.T) {
	for name, carrier := range carriers {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, carrier)
			k := g.restorable()
			if err := g.client.CatchUp(t.Context()); err != nil && !errors.Is(err, agentclient.ErrClock) {
				t.Error(err)
			}
			for _, step := range k.steps {
				if step < 0 {
					t.Errorf("stepped back by %s", -step)
				}
			}
		})
	}
}
