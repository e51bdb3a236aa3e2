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
type RestoreRequest struct {
	// Epoch is random, and different for each restore. A guest that has been
	// given the same one does nothing again.
	Epoch    string    `json:"epoch"`
	Time     time.Time `json:"time"`     // wall clock of the host, when sent
	Entropy  []byte    `json:"entropy"`  // for the kernel's generator
	Hostname string    `json:"hostname"` // of the guest, and of its container
	// MachineID is 32 lower-case hexadecimal digits: machine-id(5).
	MachineID string   `json:"machine_id"`
	Network   *Network `json:"network,omitempty"` // nil: as it is
	Hosts     []string `json:"hosts,omitempty"`   // as in Plan
	Env       []string `json:"env,omitempty"`     // KEY=VALUE: for commands that are run from now on
}

// RestoreResponse confirms that the guest is its own: its clock is set, its
// generator has new entropy, connections of the original are reset.
type RestoreResponse struct {
	Epoch string `json:"epoch"`
	// Time is the guest's wall clock, when this was sent. The host compares it
	// with its own.
	Time time.Time `json:"time"`
	// Reset is how many TCP connections of the original were reset.
	Reset int `json:"reset"`
}
