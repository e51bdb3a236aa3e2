// Package testapi is what the conformance suite of VMM drivers (vmmtest) and
// the guest that it boots say to each other, beside the agent's own status
// and shutdown.
package testapi

// Paths of the guest's HTTP service.
const (
	PathTicks    = "/test/ticks"    // GET: a number that grows while the CPUs run
	PathMachine  = "/test/machine"  // GET: Machine
	PathEcho     = "/test/echo"     // POST: the body comes back as it arrives
	PathDisk     = "/test/disk"     // PUT ?disk=vdb: the body becomes the disk's head
	PathLink     = "/test/link"     // POST: configure the interface, send a packet to the gateway
	PathFree     = "/test/free"     // GET: the memory that the guest does not use, MiB
	PathTouch    = "/test/touch"    // POST: write to TouchMiB of memory, and let it go
	PathPattern  = "/test/pattern"  // PUT: Pattern fills memory; GET: Pattern, as it is found there
	PathMetadata = "/test/metadata" // GET: Metadata; after PathLink
)

// TouchMiB is how much memory PathTouch uses, MiB.
const TouchMiB = 128

// HeadSize is how much of a disk is looked at, bytes.
const HeadSize = 512

// Machine is what the guest finds around it.
type Machine struct {
	CPUs      int      `json:"cpus"`
	MemoryMiB int      `json:"memory_mib"` // what the kernel leaves of it
	Disks     []string `json:"disks"`      // the first HeadSize bytes of vda, vdb, …
	MAC       string   `json:"mac"`        // of eth0; empty: no such interface
}

// Metadata is what the metadata service answered for the plan.
type Metadata struct {
	Status int    `json:"status"` // HTTP
	Body   []byte `json:"body"`
}

// Pattern is what fills a part of the guest's memory: numbers that follow from
// the seed.
type Pattern struct {
	Seed uint64 `json:"seed"`
	MiB  int    `json:"mib"`
	// Wrong is how many of the numbers are not as they should be.
	Wrong int `json:"wrong"`
}
