package vm

import (
	"fmt"
	"slices"
	"time"
)

// RecordSchema is the version of Record's form on disk. A record of a newer
// schema is never read, and never overwritten.
const RecordSchema = 1

// Status is where a VM is in its life.
type Status string

// The statuses of a VM. created → starting → running ⇄ paused → stopping →
// exited. A VM that never ran its container goes from created, starting or
// stopping to failed; one whose supervisor died is put there by package store,
// wherever it was. A restart policy leads from running back to
// starting. exited and failed are final.
const (
	StatusCreated  Status = "created"
	StatusStarting Status = "starting"
	StatusRunning  Status = "running"
	StatusPaused   Status = "paused"
	StatusStopping Status = "stopping"
	StatusExited   Status = "exited"
	StatusFailed   Status = "failed"
)

var transitions = map[Status][]Status{
	StatusCreated:  {StatusStarting, StatusFailed},
	StatusStarting: {StatusRunning, StatusStopping, StatusExited, StatusFailed},
	StatusRunning:  {StatusPaused, StatusStopping, StatusStarting, StatusExited},
	StatusPaused:   {StatusRunning, StatusStopping, StatusExited},
	StatusStopping: {StatusExited, StatusFailed},
}

// Final reports whether a VM in this status has ended.
func (s Status) Final() bool { return s == StatusExited || s == StatusFailed }

// Record is one VM as it is stored: what it is asked to be, and what it is.
type Record struct {
	Schema  int       `json:"schema"`
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Spec    Spec      `json:"spec"`

	Status   Status      `json:"status"`
	Ready    bool        `json:"ready"`            // the readiness gate is open
	Health   HealthState `json:"health,omitempty"` // of the container, if it has a check
	Restarts int         `json:"restarts,omitempty"`
	History  []Event     `json:"history"`

	// Supervisor identifies the process that the VM lives and dies with.
	Supervisor Process `json:"supervisor"`

	Resolved Resolved `json:"resolved"`
	Phases   []Phase  `json:"phases,omitempty"`

	ExitCode *int   `json:"exit_code,omitempty"` // the container's; set when exited
	Reason   string `json:"reason,omitempty"`    // why it ended, one line
}

// Event is one change of status.
type Event struct {
	Time   time.Time `json:"time"`
	Status Status    `json:"status"`
	Reason string    `json:"reason,omitempty"`
}

// Process names a process for as long as the host is up: process ids are used
// again, a pair of id and start time is not.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot: field 22 of /proc/PID/stat, proc(5)
}

// Resolved is what became of the Spec's references and choices.
type Resolved struct {
	Driver       string   `json:"driver,omitempty"`
	DriverReason string   `json:"driver_reason,omitempty"`
	VMMVersion   string   `json:"vmm_version,omitempty"`
	VMM          Process  `json:"vmm,omitzero"`
	Accelerated  bool     `json:"accelerated"`
	ImageDigest  string   `json:"image_digest,omitempty"`
	KernelID     string   `json:"kernel_id,omitempty"`
	RootID       string   `json:"root_id,omitempty"`
	Network      string   `json:"network,omitempty"`
	Ports        []string `json:"ports,omitempty"`         // HOSTIP:HOSTPORT->GUESTPORT/PROTOCOL
	Addresses    []string `json:"addresses,omitempty"`     // the VM's own, among others
	NetworkNotes []string `json:"network_notes,omitempty"` // why this network, and what was changed on the host for it
	Command      []string `json:"command,omitempty"`
}

// Phase is how long one step of the start took.
type Phase struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"duration"` // nanoseconds
}

// Move changes the status and writes the history. A change that a VM's life
// does not have is a defect of the caller, and an error.
func (r *Record) Move(to Status, reason string, now time.Time) error {
	if !slices.Contains(transitions[r.Status], to) {
		return fmt.Errorf("move VM %s from %s to %s: not a change that a VM can make", r.Name, r.Status, to)
	}
	r.Status = to
	r.History = append(r.History, Event{Time: now.UTC(), Status: to, Reason: reason})
	if to.Final() {
		r.Reason = reason
	}
	return nil
}
