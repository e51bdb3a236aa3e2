// Package agentapi is what host and guest say to each other: HTTP/1.1 with
// JSON bodies over the agent channel, and framed streams after an upgrade.
// It holds types, frames and limits, and imports only the standard library.
//
//	GET  /v1/status            Status
//	PUT  /v1/plan              Plan; once (QEMU; on Firecracker it comes from MMDS)
//	GET  /v1/up                Status, once the guest is up, with its plan or without, or never will be
//	GET  /v1/ready             Status, once a container can be started or never will be
//	POST /v1/container/attach  upgrade to a stream of the container's stdio
//	POST /v1/container/start   start what the plan says; StartResponse
//	POST /v1/container/signal  SignalRequest
//	POST /v1/exec              ExecRequest, upgrade to a stream
//	POST /v1/probe             ProbeRequest; an error says that the answer is no
//	GET  /v1/stats             Stats
//	GET  /v1/processes         Processes of the container; ?guest=1: of the guest
//	POST /v1/copy/in           CopyRequest as query; a tar stream into the container; CopyResponse
//	GET  /v1/copy/out          CopyRequest as query; a tar stream out of it
//	POST /v1/share             ShareRequest, upgrade to a stream of SFTP; again when it was lost
//	POST /v1/clock             ClockSync, upgrade to a stream, after the guest stood still
//	POST /v1/restore           RestoreRequest, upgrade to a stream, after a snapshot was loaded
//	POST /v1/shutdown          sync the disks and power off
//
// Errors come as Error with a status of 400 or more. The guest is hostile:
// the host reads no body beyond MaxBody and no frame beyond MaxFrame.
package agentapi

import (
	"net/url"
	"time"
)

// Version of this protocol; it changes when an older peer would misunderstand.
const Version = 2

// Paths of the agent's HTTP service.
const (
	PathStatus   = "/v1/status"
	PathPlan     = "/v1/plan"
	PathUp       = "/v1/up"
	PathReady    = "/v1/ready"
	PathAttach   = "/v1/container/attach"
	PathStart    = "/v1/container/start"
	PathSignal   = "/v1/container/signal"
	PathExec     = "/v1/exec"
	PathProbe    = "/v1/probe"
	PathStats    = "/v1/stats"
	PathProcs    = "/v1/processes"
	PathCopyIn   = "/v1/copy/in"
	PathCopyOut  = "/v1/copy/out"
	PathShare    = "/v1/share"
	PathClock    = "/v1/clock"
	PathRestore  = "/v1/restore"
	PathShutdown = "/v1/shutdown"
)

// StreamProtocol is the token of the Upgrade header for framed streams.
const StreamProtocol = "fcvm-stream/1"

// TrailerError comes after the body of a copy that failed in the middle.
const TrailerError = "Fcvm-Error"

// Limits that both sides keep.
const (
	MaxBody  = 4 << 20  // bytes of a JSON body
	MaxFrame = 64 << 10 // bytes of a frame's payload

	MaxProcesses = 1000 // that are told of; there may be more
	MaxCommand   = 512  // bytes of a process's command line

	MaxSkipped = 50 // names that a copy tells of
	MaxPath    = 4096

	StdinWindow = 512 << 10 // bytes of stdin on their way to a process
)

// Kernel command line parameters that the agent reads as /init. They carry no
// secrets: /proc/cmdline is readable by everyone.
const (
	ParamChannel = "fcvm.channel" // "vsock" or "serial"
	ParamPlan    = "fcvm.plan"    // "mmds" or "channel"
	ParamInit    = "fcvm.init"    // "agent" or "systemd"
)

// MMDS: Firecracker's metadata service, version 2 (token by PUT, then GET).
// https://github.com/firecracker-microvm/firecracker/blob/main/docs/mmds/mmds-user-guide.md
const (
	MMDSAddress = "169.254.169.254"
	MMDSPlanKey = "plan" // the plan lies at /plan, JSON-encoded in a string
)

// Disks of the guest, always in this order.
const (
	DiskRoot    = 0 // guest root, read-only: /dev/vda
	DiskImage   = 1 // container image, read-only: /dev/vdb
	DiskScratch = 2 // writable, per VM: /dev/vdc
)

// DiskVolumes is the first of the disks that the plan's mounts name: /dev/vdd.
const DiskVolumes = 3

// ImageRoot is the directory on the image's disk that holds the image's tree.
// The disk's own root has entries of ext4's (lost+found) that the image has not.
const ImageRoot = "rootfs"

// Plan tells the agent what to run. It may hold secrets (environment).
type Plan struct {
	Version   int       `json:"version"`
	Hostname  string    `json:"hostname"` // the guest's
	Time      time.Time `json:"time"`     // wall clock of the host, when sent
	Network   *Network  `json:"network,omitempty"`
	Hosts     []string  `json:"hosts,omitempty"` // further lines of hosts(5)
	Container Container `json:"container"`
}

// Network is how the agent configures the one interface.
type Network struct {
	Interface string   `json:"interface"`
	Address   string   `json:"address"` // CIDR
	Gateway   string   `json:"gateway,omitempty"`
	DNS       []string `json:"dns,omitempty"`
	Search    []string `json:"search,omitempty"`
	MTU       int      `json:"mtu,omitempty"`      // bytes; 0: leave it
	Address6  string   `json:"address6,omitempty"` // CIDR; empty: no IPv6
	Gateway6  string   `json:"gateway6,omitempty"`
}

// Container is the container with everything of its image merged in.
type Container struct {
	Name        string            `json:"name"`
	Image       string            `json:"image"` // for display
	Args        []string          `json:"args"`  // entrypoint and command
	Env         []string          `json:"env,omitempty"`
	WorkDir     string            `json:"work_dir,omitempty"`
	User        string            `json:"user,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Privileged  bool              `json:"privileged,omitempty"`
	ReadOnly    bool              `json:"read_only,omitempty"`
	CapAdd      []string          `json:"cap_add,omitempty"`
	CapDrop     []string          `json:"cap_drop,omitempty"`
	Tmpfs       []string          `json:"tmpfs,omitempty"`
	Volumes     []Volume          `json:"volumes,omitempty"` // the image's VOLUMEs, and others
	Mounts      []Mount           `json:"mounts,omitempty"`
	Interactive bool              `json:"interactive,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	StopSignal  string            `json:"stop_signal,omitempty"`
}

// Mount is a directory, or a file, of the container's that lies on a share or a
// disk.
type Mount struct {
	Target   string `json:"target"` // absolute, in the container
	ReadOnly bool   `json:"read_only,omitempty"`
	Share    string `json:"share,omitempty"` // its name; empty: it is a disk
	File     bool   `json:"file,omitempty"`  // of a share: the one file ShareFile, not the directory
	Disk     int    `json:"disk,omitempty"`  // number of the disk, DiskVolumes or more
	Own      bool   `json:"own,omitempty"`   // of a disk: the host has made it, and it can be written, if only before the container starts
	Seed     bool   `json:"seed,omitempty"`  // of such a disk: while it is empty, it gets what the image has at the target
}

// Volume is an anonymous volume, on the scratch disk.
type Volume struct {
	Target string `json:"target"`
	NoCopy bool   `json:"nocopy,omitempty"` // it does not get what the image has at the target
}

// ShareFile is the name of the one file of a share that is a file.
const ShareFile = "file"

// ShareRequest opens the stream by which the host serves a share of the plan's.
// The agent mounts it when it comes first. Another one takes the place of the
// one before it, as after a restore: what the container has open stays open.
type ShareRequest struct {
	Name string `json:"name"`
}

// Phase is how far the guest is.
type Phase string

// The phases of a guest, in order.
const (
	PhaseBooting  Phase = "booting"  // the agent answers, the root is not ready
	PhaseUp       Phase = "up"       // disks are mounted, the root is switched; without a plan it waits for one
	PhaseReady    Phase = "ready"    // a container can be started
	PhaseStarting Phase = "starting" // Podman was called
	PhaseRunning  Phase = "running"  // the container's first process runs
	PhaseExited   Phase = "exited"
	PhaseFailed   Phase = "failed" // the guest cannot run a container; see Status.Error
)

// Status is what the agent says of itself and the container.
type Status struct {
	Version  int     `json:"version"`
	Phase    Phase   `json:"phase"`
	HavePlan bool    `json:"have_plan"`
	Error    string  `json:"error,omitempty"`
	Exit     *Exit   `json:"exit,omitempty"`
	Uptime   float64 `json:"uptime"` // seconds since the guest's kernel started
}

// Exit is how a process in the guest ended.
type Exit struct {
	Code   int    `json:"code"`             // 128+n for a signal n
	Error  string `json:"error,omitempty"`  // why it never ran
	Failed bool   `json:"failed,omitempty"` // it never ran; Code is 125, 126 or 127
}

// StartResponse says that the container's first process runs.
type StartResponse struct {
	PID int `json:"pid"` // in the guest
}

// SignalRequest sends a signal to the container's first process.
type SignalRequest struct {
	Signal int `json:"signal"`
}

// ExecRequest runs a command in the guest (Guest) or in the container. What is
// left out is as the container has it. The size is the terminal's first one.
type ExecRequest struct {
	Args       []string `json:"args"`
	Env        []string `json:"env,omitempty"`      // KEY=VALUE, over the container's
	WorkDir    string   `json:"work_dir,omitempty"` // absolute
	User       string   `json:"user,omitempty"`     // USER[:GROUP], names or numbers
	Detach     bool     `json:"detach,omitempty"`   // the stream ends once it runs; no stdio
	TTY        bool     `json:"tty,omitempty"`
	Stdin      bool     `json:"stdin,omitempty"`
	Guest      bool     `json:"guest,omitempty"`
	Privileged bool     `json:"privileged,omitempty"`
	Rows       uint16   `json:"rows,omitempty"`
	Cols       uint16   `json:"cols,omitempty"`
}

// ProbeRequest asks whether something in the guest answers: one of HTTP and TCP.
type ProbeRequest struct {
	HTTP    string        `json:"http,omitempty"` // a URL; 200 to 399 is yes
	TCP     uint16        `json:"tcp,omitempty"`  // a port of the guest
	Timeout time.Duration `json:"timeout"`        // nanoseconds
}

// CopyRequest says what is copied; see package treecopy for what the options mean.
type CopyRequest struct {
	Path    string // in the container
	Archive bool   // in: owners are kept
	Extract bool   // in: any archive, into a directory
	Follow  bool   // out: a link at the end of the path is followed
	Sparse  bool   // out: the reader knows PAX's sparse files
}

// Query encodes the request.
func (r CopyRequest) Query() url.Values {
	q := url.Values{"path": {r.Path}}
	for key, set := range r.flags() {
		if *set {
			q.Set(key, "1")
		}
	}
	return q
}

// ParseCopyRequest decodes what Query encodes.
func ParseCopyRequest(q url.Values) CopyRequest {
	r := CopyRequest{Path: q.Get("path")}
	for key, set := range r.flags() {
		*set = q.Get(key) == "1"
	}
	return r
}

func (r *CopyRequest) flags() map[string]*bool {
	return map[string]*bool{"archive": &r.Archive, "extract": &r.Extract, "follow": &r.Follow, "sparse": &r.Sparse}
}

// CopyResponse ends a copy into the container.
type CopyResponse struct {
	Skipped []string `json:"skipped,omitempty"` // names and reasons, MaxSkipped at most
}

// Error is the body of every answer with a status of 400 or more.
type Error struct {
	Message string `json:"error"`
}

func (e *Error) Error() string { return e.Message }
