package supervisor

import (
	"context"
	"errors"
	"time"

	"github.com/fcvm/fcvm/internal/vm"
)

// clockWait is how long a guest that goes on may take to set its clock.
const clockWait = 2 * time.Second

// catchUp has the clock of a guest that goes on follow the host's: with some VMMs
// it stands still with the guest. A guest whose clock stays behind goes on all the
// same, and somebody is told.
func (in *instance) catchUp(ctx context.Context) {
	if in.vm.Record().Status != vm.StatusRunning {
		return
	}
	own := in.catchUps.Add(1)
	ctx, cancel := untilDone(context.WithoutCancel(ctx), in.machine, clockWait)
	defer cancel()
	_, err := in.agent.SetClock(ctx)
	// What was paused again meanwhile, or has ended, is asked another time, or never.
	if err == nil || in.vm.Record().Status != vm.StatusRunning || errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	if in.catchUps.Load() != own || !in.capturing.TryLock() {
		return // so is what stands, or has stood, still for a snapshot since
	}
	in.capturing.Unlock()
	in.warn("the guest's clock may be behind by the time for which it has stood still: "+firstLine(err), time.Now())
}
