// Package control is how commands speak to the supervisor of a VM that another
// process runs: HTTP/1.1 with JSON bodies over a Unix socket that only the
// VM's owner can open.
//
//	POST /v1/agent   upgrade to a connection of the guest agent
//	POST /v1/stop    StopRequest; answers when the container has ended
//	POST /v1/kill    KillRequest
//	POST /v1/pause
//	POST /v1/resume
//	POST /v1/rename  RenameRequest
//	POST /v1/update  UpdateRequest
//	POST /v1/publish PublishRequest; answers with Published
//	POST /v1/snapshot SnapshotRequest; answers with Snapshotted
//	GET  /v1/wait    answers with Ended when the VM has ended
//	GET  /v1/ready   answers when the readiness gate is open, or never will be
//
// The supervisor is the same program, of the same user, but not always of the
// same version: what a server does not know, it answers with an error.
package control

import (
	"context"
	"net"
	"time"
)

// Paths of the service.
const (
	pathAgent  = "/v1/agent"
	pathStop   = "/v1/stop"
	pathKill   = "/v1/kill"
	pathPause  = "/v1/pause"
	pathResume = "/v1/resume"
	pathRename = "/v1/rename"
	pathUpdate = "/v1/update"
	pathWait   = "/v1/wait"
	pathReady  = "/v1/ready"
)

// agentProtocol is the token of the Upgrade header for the agent's channel.
const agentProtocol = "fcvm-agent"

const maxBody = 64 << 10 // bytes of a request or an answer

// StopRequest ends the container by its stop signal, and by SIGKILL when it
// still runs after Timeout; a negative one waits forever.
type StopRequest struct {
	Timeout time.Duration `json:"timeout"` // nanoseconds
}

// KillRequest sends a signal to the container's first process.
type KillRequest struct {
	Signal int `json:"signal"`
}

// RenameRequest gives the VM another name.
type RenameRequest struct {
	Name string `json:"name"`
}

// UpdateRequest changes a VM that runs; what is nil stays.
type UpdateRequest struct {
	BalloonMiB *int `json:"balloon_mib,omitempty"` // what the guest is to give up of its memory
}

// Ended is how a VM ended.
type Ended struct {
	ExitCode int    `json:"exit_code"`
	Reason   string `json:"reason"`
}

// VM is what a supervisor offers. Methods are called concurrently.
type VM interface {
	DialAgent(ctx context.Context) (net.Conn, error)
	// Stop returns when the container has ended.
	Stop(ctx context.Context, timeout time.Duration) error
	// Kill sends a signal; with SIGKILL it returns when the container has ended.
	Kill(ctx context.Context, signal int) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Rename(ctx context.Context, name string) error
	Update(ctx context.Context, u UpdateRequest) error
	// Publish opens or closes ports, and returns them.
	Publish(ctx context.Context, ports []string, remove bool) ([]string, error)
	// Snapshot returns when the snapshot is whole.
	Snapshot(ctx context.Context, req SnapshotRequest) (Snapshotted, error)
	// Wait returns when the VM has ended for good.
	Wait(ctx context.Context) (Ended, error)
	// WaitReady returns when the VM's readiness gate is open.
	WaitReady(ctx context.Context) error
}
