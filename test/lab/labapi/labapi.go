// Package labapi is what the lab's host side and its first process (lab/guest)
// say to each other: the job goes in as a file on a disk, its output and its
// exit come back as frames (package agentapi) on a virtio-serial port.
package labapi

import (
	"os"
	"time"
)

// PortName is the virtio-serial port's.
const PortName = "fcvm.lab"

// JobFile is the job's file on the payload disk, JSON of Job.
const JobFile = "job.json"

// Disks, in this order: vda, vdb, …
const (
	DiskRoot    = iota // Debian, read-only
	DiskPayload        // job.json, bin/, work/; read-only
	DiskScratch        // empty ext4; every write in the lab goes to it
	DiskData           // fcvm's data directory, read-only; there only with Job.Data
)

// Places in the lab. All are writable.
const (
	PayloadDir = "/lab"
	BinDir     = PayloadDir + "/bin"  // fcvm, fc-agent, firecracker, …
	WorkDir    = PayloadDir + "/work" // the job's working directory
	DataDir    = "/var/lib/fcvm"
)

// Beat is how often the lab says that it lives, by an empty frame of stderr.
const Beat = 5 * time.Second

// UserID is the ordinary user's.
const UserID = 1000

// Job is what the lab runs.
type Job struct {
	Args    []string `json:"args"` // a program, looked for in BinDir first, and its arguments
	Env     []string `json:"env"`
	User    bool     `json:"user"`    // as UserID rather than root
	Data    bool     `json:"data"`    // there is a data disk
	Bench   bool     `json:"bench"`   // the scheduler's times are those for an emulated CPU
	Verbose bool     `json:"verbose"` // say on stderr how far the lab is
}

// Starts is how often a VM may be started in the lab, which resets some guests as
// they start, before a test takes that for a failure.
const Starts = 4

// InsideEnv is set in the lab.
const InsideEnv = "FCVM_LAB"

// Inside reports whether this process runs in the lab.
func Inside() bool { return os.Getenv(InsideEnv) != "" }

// OneCPU are flags of fcvm run for guests in the lab: some of those with two virtual
// CPUs lose one there, when many are loaded, and hang. Elsewhere there are none.
func OneCPU() []string {
	if !Inside() {
		return nil
	}
	return []string{"--cpu", "1"}
}
