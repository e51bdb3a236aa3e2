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
// wherever it was. A restart policy leads from running back to starting, and
// from paused if the VM was lost. exited and failed are final.
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
	StatusPaused:   {StatusRunning, StatusStopping, StatusStarting, StatusExited},
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
	History  []Event     `json:"history"` // the first and the last changes of status, HistoryEnds of each at most
	// HistoryDropped is how many changes between them are not kept.
	HistoryDropped int `json:"history_dropped,omitempty"`

	// Supervisor identifies the process that the VM lives and dies with.
	Supervisor Process `json:"supervisor"`
	// Boot is the host's boot id at that time: after a restart of the host the
	// ids of processes mean others.
	Boot string `json:"boot,omitempty"`

	Resolved Resolved `json:"resolved"`
	Phases   []Phase  `json:"phases,omitempty"`

	ExitCode *int   `json:"exit_code,omitempty"` // the container's; as a shell has it if that could not be started
	Reason   string `json:"reason,omitempty"`    // why it ended, one line

	// LogLost is how many bytes of the container's output could not be written
	// to its log.
	LogLost int64 `json:"log_lost,omitempty"`

	// Warnings are what has gone wrong without ending the VM, MaxWarnings at most.
	Warnings []Event `json:"warnings,omitempty"`
}

// HistoryEnds is how many changes of status a record keeps, of the first and of
// the last ones: a container that is started again for ever has no end of them.
const HistoryEnds = 50

// MaxWarnings is how many a record keeps, the first ones.
const MaxWarnings = 20

// Warn writes down what has gone wrong without ending the VM.
func (r *Record) Warn(reason string, now time.Time) {
	if len(r.Warnings) < MaxWarnings {
		r.Warnings = append(slices.Clip(r.Warnings), Event{Time: now.UTC(), Status: r.Status, Reason: reason})
	}
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

	Process Runtime `json:"process,omitzero"`
	Link    Link    `json:"link,omitzero"` // empty without a network
	Disks   []Disk  `json:"disks,omitempty"`

	Snapshot Lineage `json:"snapshot,omitzero"` // what the VM was started from; empty: it booted

	Limits Limits `json:"limits,omitzero"`
	// BalloonMiB is what the guest was last asked to give up.
	BalloonMiB int `json:"balloon_mib"`
}

// Lineage is where a clone comes from. Neither need exist any more.
type Lineage struct {
	ID       string `json:"id"` // of the snapshot
	Name     string `json:"name,omitempty"`
	Source   string `json:"source"`    // name of the VM that it was taken of
	SourceID string `json:"source_id"` //
}

// Runtime is the container's process, with what the image says and the Spec
// over it. Its command is Resolved.Command.
type Runtime struct {
	Env        []string `json:"env,omitempty"` // KEY=VALUE
	WorkDir    string   `json:"work_dir,omitempty"`
	User       string   `json:"user,omitempty"`
	StopSignal string   `json:"stop_signal,omitempty"`
	Health     *Health  `json:"health,omitempty"` // nil: no check
}

// Link is the guest's one network interface.
type Link struct {
	Interface string `json:"interface"`
	MAC       string `json:"mac"`
	Address   string `json:"address"` // CIDR
	Gateway   string `json:"gateway"`
	DNS       string `json:"dns"`
	MTU       int    `json:"mtu,omitempty"` // bytes
}

// Disk is one of the guest's, in its order.
type Disk struct {
	ID       string `json:"id"`
	Device   string `json:"device"` // in the guest
	Path     string `json:"path"`   // on the host
	ReadOnly bool   `json:"read_only"`
}

// Limits is what the host lets the VM's processes use: those of the VMM, and
// what belongs to it, but not the supervisor.
type Limits struct {
	By       string   `json:"by,omitempty"`        // who made the control group: systemd or cgroupfs; empty: there is none
	Cgroup   string   `json:"cgroup,omitempty"`    // its directory
	Memory   uint64   `json:"memory,omitempty"`    // bytes: the guest's, and what the VMM needs beside it
	CPUs     int      `json:"cpus,omitempty"`      // processors' worth of time
	IOWeight int      `json:"io_weight,omitempty"` // share of a busy disk; others have 100
	IORate   uint64   `json:"io_rate,omitempty"`   // bytes a second, each way
	Missing  []string `json:"missing,omitempty"`   // those of them that this host does not have
	Note     string   `json:"note,omitempty"`      // why there are none
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
	if more := len(r.History) - 2*HistoryEnds; more > 0 {
		r.History = slices.Concat(r.History[:HistoryEnds], r.History[HistoryEnds+more:]) // others read the old one
		r.HistoryDropped += more
	}
	if to.Final() {
		r.Reason = reason
	}
	return nil
}

// Moves is how often the status has changed.
func (r *Record) Moves() int { return r.HistoryDropped + len(r.History) }
