package vm

import "time"

// HealthState is what a container's health check says.
type HealthState string

// The states of a container that has a health check; the others have none.
const (
	HealthStarting  HealthState = "starting"
	HealthHealthy   HealthState = "healthy"
	HealthUnhealthy HealthState = "unhealthy"
)

// What a health check has when nothing else is said, as in Docker.
const (
	DefaultHealthInterval = 30 * time.Second
	DefaultHealthTimeout  = 30 * time.Second
	DefaultHealthRetries  = 3
)

// MinInterval is the least time between two looks at a container, for its health
// or at its gate: each is a process, or a connection, in a guest that has other
// things to do.
const MinInterval = 100 * time.Millisecond

// Health is a health check. Test is as the OCI/Docker image configuration has
// it: "NONE"; "CMD" and arguments; "CMD-SHELL" and a line for /bin/sh. Zero
// values stand for the defaults; an empty Test for the image's own.
type Health struct {
	Test        []string      `json:"test,omitempty"`
	Interval    time.Duration `json:"interval,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"`
	StartPeriod time.Duration `json:"start_period,omitempty"`
	Retries     int           `json:"retries,omitempty"`
}
