package agentapi

import "time"

// Limits of a RestoreRequest.
const (
	MinEntropy = 32   // bytes
	MaxEntropy = 4096 // bytes
)

// RestoreRequest makes a guest that was loaded from a snapshot a machine of its
// own. The host sends it once, before anything else, when the guest runs again.
// Nobody but the host knows what is in it until then: it is in no snapshot.
//
// Nothing has to be asked of the guest before a snapshot. What it has not yet
// written to its disks is in its memory, and the two are taken together, while
// it is paused, and never used without each other.
type RestoreRequest struct {
	// Epoch is random, and different for each restore: 1 to 64 bytes. A guest
	// that has done all for this one only sets its clock again.
	Epoch    string    `json:"epoch"`
	Time     time.Time `json:"time"`     // what the guest's wall clock is to be when it reads this
	Entropy  []byte    `json:"entropy"`  // for the kernel's generator
	Hostname string    `json:"hostname"` // of the guest, and of its container; empty: as it is
	// MachineID is 32 lower-case hexadecimal digits: machine-id(5).
	MachineID string   `json:"machine_id"`
	Network   *Network `json:"network,omitempty"` // nil: as it is
	Hosts     []string `json:"hosts,omitempty"`   // lines for hosts(5), besides those that are there
	// Env is KEY=VALUE, for commands that are run from now on: over what the
	// container has, and what an earlier restore gave.
	Env []string `json:"env,omitempty"`
}

// RestoreResponse confirms that the guest is its own: its clock is set, its
// generator has new entropy, connections of the original are reset.
type RestoreResponse struct {
	Epoch string `json:"epoch"`
	// Time is the guest's wall clock, when this was sent. The host compares it
	// with its own.
	Time time.Time `json:"time"`
	// Took is how long the guest had the request, nanoseconds: the rest of what
	// the host has waited is the channel's.
	Took time.Duration `json:"took"`
	// Reset is how many TCP connections of the original were reset.
	Reset int `json:"reset"`
}
