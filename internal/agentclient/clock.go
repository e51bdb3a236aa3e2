package agentclient

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// CatchUp sets the clock of a guest that has stood still, if it has stood still as
// well. It asks again where the channel is slow, which brings the time late. The
// error is ErrClock when the clock is behind even so.
func (c *Client) CatchUp(ctx context.Context) error {
	var way, behind, delay time.Duration
	for range goalAttempts {
		var r agentapi.ClockResponse
		sent := time.Now()
		req := agentapi.ClockRequest{Time: sent.Add(way)}
		if err := c.call(ctx, http.MethodPost, agentapi.PathClock, req, &r); err != nil {
			return fmt.Errorf("set the guest's clock: %w", err)
		}
		received := time.Now()
		if r.Took < 0 || r.Took > received.Sub(sent) {
			return fmt.Errorf("set the guest's clock: %w: it had a request for %s that took %s", ErrAgent, r.Took, received.Sub(sent))
		}
		delay = received.Sub(sent) - r.Took
		behind = received.Add(-delay / 2).Sub(r.Time)
		if behind <= clockGoal {
			return nil
		}
		way = delay / 2
	}
	if least := behind - delay/2; least > clockLimit {
		return fmt.Errorf("set the guest's clock: %w: it is behind by at least %s", ErrClock, least.Round(time.Millisecond))
	}
	return nil
}
