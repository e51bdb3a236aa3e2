package agent

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
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

// setClock steps the wall clock.
func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock to %s: %w", t.UTC().Format(time.RFC3339Nano), err)
	}
	return nil
}
