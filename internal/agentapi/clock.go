package agentapi

import "time"

// ClockRequest sets the wall clock of a guest that has stood still, paused or for
// a snapshot, and is behind by that time. A clock that is not behind stays as it
// is: a request that was long on its way does no harm.
type ClockRequest struct {
	Time time.Time `json:"time"` // what the guest's wall clock is to be when it reads this
}

// ClockResponse says what the guest's clock is.
type ClockResponse struct {
	Time time.Time `json:"time"` // the guest's wall clock, when this was sent
	// Took is how long the guest had the request, nanoseconds.
	Took time.Duration `json:"took"`
}
