package agentapi

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Limits of a RestoreRequest.
const (
	MinEntropy = 32   // bytes
	MaxEntropy = 4096 // bytes
	MaxEpoch   = 64   // bytes
)

// ClockSync opens a stream by which the host sets the guest's wall clock. The
// guest sets it to Time at once, unless it has done that for this epoch before,
// and then answers each FrameClock with another.
type ClockSync struct {
	// Epoch is random, and different for each time that the guest stood still: 1
	// to MaxEpoch bytes.
	Epoch string    `json:"epoch"`
	Time  time.Time `json:"time"` // what the wall clock is to be when the guest reads this
}

// RestoreRequest makes a guest that was loaded from a snapshot a machine of its
// own. The host sends it once, before anything else, when the guest runs again.
// Nobody but the host knows what is in it until then: it is in no snapshot.
//
// It opens a stream as ClockSync does; when all else is done, the guest sends
// FrameRestored.
//
// Nothing has to be asked of the guest before a snapshot. What it has not yet
// written to its disks is in its memory, and the two are taken together, while
// it is paused, and never used without each other.
type RestoreRequest struct {
	ClockSync        // a guest that has done all for this epoch does nothing again
	Entropy   []byte `json:"entropy"`  // for the kernel's generator
	Hostname  string `json:"hostname"` // of the guest, and of its container; empty: as it is
	// MachineID is 32 lower-case hexadecimal digits: machine-id(5).
	MachineID string   `json:"machine_id"`
	Network   *Network `json:"network,omitempty"` // nil: as it is
	Hosts     []string `json:"hosts,omitempty"`   // lines for hosts(5), besides those that are there
	// Env is KEY=VALUE, for commands that are run from now on: over what the
	// container has, and what an earlier restore gave.
	Env []string `json:"env,omitempty"`
}

// RestoreResponse confirms that the guest is its own: its generator has new
// entropy, connections of the original are reset. Or it says in Error what could
// not be done; such a guest is not to be used.
type RestoreResponse struct {
	Epoch string        `json:"epoch"`
	Took  time.Duration `json:"took"`            // nanoseconds
	Reset int           `json:"reset"`           // how many TCP connections of the original were reset
	Error string        `json:"error,omitempty"` // empty: all was done
}

// ClockRequest is the payload of a host's FrameClock: its two fields, as
// big-endian 64-bit numbers.
type ClockRequest struct {
	// Seq ascends over all streams of an epoch. A request that comes after a later
	// one only asks.
	Seq uint64
	// Shift is how far the clock is to be ahead of what ClockSync.Time has made of
	// it. So it does not matter how long the request was on its way, nor whether it
	// comes twice.
	Shift time.Duration
}

// ClockAnswer is the payload of a guest's FrameClock: its three fields, as
// big-endian 64-bit numbers, of Time nanoseconds since 1970.
type ClockAnswer struct {
	Seq   uint64        // of the request
	Shift time.Duration // as it is now
	Time  time.Time     // the guest's wall clock, when this was sent
}

// Encode returns the payload of a frame.
func (c *ClockRequest) Encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, c.Seq), uint64(c.Shift))
}

// ParseClockRequest decodes a payload.
func ParseClockRequest(p []byte) (ClockRequest, error) {
	if len(p) != 16 {
		return ClockRequest{}, fmt.Errorf("%w: a request for the clock has 16 bytes, not %d", ErrFrame, len(p))
	}
	return ClockRequest{Seq: binary.BigEndian.Uint64(p), Shift: time.Duration(binary.BigEndian.Uint64(p[8:]))}, nil
}

// Encode returns the payload of a frame.
func (c *ClockAnswer) Encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, c.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Shift))
	return binary.BigEndian.AppendUint64(b, uint64(c.Time.UnixNano()))
}

// ParseClockAnswer decodes a payload.
func ParseClockAnswer(p []byte) (ClockAnswer, error) {
	if len(p) != 24 {
		return ClockAnswer{}, fmt.Errorf("%w: an answer about the clock has 24 bytes, not %d", ErrFrame, len(p))
	}
	return ClockAnswer{
		Seq: binary.BigEndian.Uint64(p), Shift: time.Duration(binary.BigEndian.Uint64(p[8:])),
		Time: time.Unix(0, int64(binary.BigEndian.Uint64(p[16:]))),
	}, nil
}
