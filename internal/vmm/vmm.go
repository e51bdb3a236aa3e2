// Package vmm says what fcvm asks of a virtual machine monitor. A Driver
// starts Machines; everything above this package sees only these types.
// The drivers are vmm/firecracker and vmm/qemu; vmm/vmmtest is the suite that
// both pass.
//
// The life of a Machine: Driver.Start spawns the VMM and boots the guest;
// Dial reaches the agent in it, Pause and Resume stop and go on with its
// virtual CPUs; Kill ends it. A VMM that ends by itself (guest power-off,
// kernel panic, a signal from outside) closes Done. Close releases what the
// Machine holds on the host and is always called, once. A Machine that is a
// Snapshotter can be saved while it is paused, and a Driver that is a Restorer
// starts any number of Machines from what was saved.
package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Sentinel errors of drivers.
var (
	// ErrUnavailable: this driver cannot run VMs on this host.
	ErrUnavailable = errors.New("VMM is not available")
	// ErrExited: the VMM is gone.
	ErrExited = errors.New("VMM has exited")
	// ErrKilled: somebody has killed the VMM. It comes with ErrExited.
	ErrKilled = errors.New("killed by SIGKILL")
	// ErrUnsupported: this driver does not do that.
	ErrUnsupported = errors.New("not supported by this VMM")
)

// AgentPort is the vsock port that the guest agent listens on (Firecracker).
const AgentPort = 1024

// AgentSerialName is the virtio-serial port's name that the guest agent opens
// (QEMU).
const AgentSerialName = "fcvm.agent"

// GuestMAC is the same in every guest; a namespace of its own keeps them apart.
const GuestMAC = "02:fc:00:00:00:05"

// Config describes one machine. Every path is relative to Dir, which is the
// VMM's working directory, so that a snapshot names nothing of this host.
type Config struct {
	Dir       string // absolute; holds all that is named below
	Kernel    string // an ELF vmlinux on x86_64, an Image on arm64
	Initrd    string
	Cmdline   string // without what the driver adds itself (console=, reboot=…)
	CPUs      int
	MemoryMiB int
	HugePages bool   // memory of pages of 2 MiB, which the host has reserved; only Firecracker
	Disks     []Disk // in the guest's order: vda, vdb, …
	Net       *Net   // nil: no network interface

	// Metadata is given to the guest through the driver's metadata service
	// (Firecracker's MMDS v2). Only for drivers whose Capabilities say so,
	// and only with a network interface. A JSON object, {} for nothing yet, of at
	// most MaxMetadata bytes.
	Metadata json.RawMessage

	// Console receives the guest's serial console, VMMLog the VMM's own
	// messages. Both are files that the VMM writes itself; never nil.
	Console *os.File
	VMMLog  *os.File

	// Launcher starts the VMM's process; nil: a plain child of this one.
	Launcher Launcher
}

// Disk is a raw disk image.
type Disk struct {
	ID       string // [a-z0-9]+; stable: "root", "image", "scratch", …
	Path     string
	ReadOnly bool
	Device   bool // it is a block device of the host's, not a file
	Rate     Rate
}

// Rate bounds what a guest has of a disk, reads and writes together, with
// bursts of a second's worth. Zero: no bound.
type Rate struct {
	Bytes uint64 // a second
	Ops   uint64 // requests a second
}

// Net is the guest's one network interface. Exactly one of Tap and Socket is set.
type Net struct {
	MAC    string
	MTU    int      // bytes; 0: the VMM's default
	Tap    string   // a tap's name, in the namespace in which the VMM starts
	Socket *os.File // stream socket with QEMU's framing: a 4-byte big-endian length before each frame
}

// Availability says whether a driver can run VMs here, and why.
type Availability struct {
	Usable      bool   `json:"usable"`
	Accelerated bool   `json:"accelerated"`        // by KVM
	Program     string `json:"program,omitempty"`  // path of the VMM
	Version     string `json:"version,omitempty"`  //
	Reason      string `json:"reason"`             // why usable or not, one line
	Remedy      string `json:"remedy,omitempty"`   // what to do when not
	Features    string `json:"features,omitempty"` // "KVM", "TCG", …
}

// Capabilities is what differs between drivers and shows above them.
type Capabilities struct {
	Metadata    bool // has a metadata service
	TapNetwork  bool // takes Net.Tap
	SockNetwork bool // takes Net.Socket
	AgentVsock  bool // agent channel is vsock; else virtio-serial
	BootTimeout time.Duration
	// PageServer: RestoreFrom.PageServer works (userfaultfd).
	PageServer bool
	// MemoryOverheadMiB is what the VMM's process may need beside the guest's
	// memory, with room to spare, MiB.
	MemoryOverheadMiB int
}

// Driver starts machines of one kind of VMM. It is stateless and safe for
// concurrent use.
type Driver interface {
	Name() string
	// Probe looks at the host; it starts no guest but the KVM probe's
	// two instructions.
	Probe(ctx context.Context) Availability
	// Capabilities of the VMM as probed.
	Capabilities() Capabilities
	// Start spawns the VMM and boots the guest. When it returns an error
	// nothing is left running.
	Start(ctx context.Context, cfg Config) (Machine, error)
}

// Looker is a Driver that can be asked whether it is there without a guest to try:
// that is enough for who restores a snapshot that was taken with it, on a host like
// this one, and is told when that fails.
type Looker interface {
	Driver
	// Look is Probe, but for whether a guest runs.
	Look(ctx context.Context) Availability
}

// Machine is one running VMM.
type Machine interface {
	// Dial opens a connection to the guest agent. It fails at once while the
	// agent does not listen yet; callers retry.
	Dial(ctx context.Context) (net.Conn, error)
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Kill ends the VMM with SIGKILL and waits for it. Killing what is gone
	// is no error.
	Kill(ctx context.Context) error
	// Done is closed when the VMM's process has ended.
	Done() <-chan struct{}
	// Exit says how it ended; valid once Done is closed.
	Exit() Exit
	// PID of the VMM's process.
	PID() int
	// Close kills what still runs and removes the machine's sockets.
	Close() error
}

// MaxMetadata bounds what a metadata service is given, bytes.
const MaxMetadata = 4 << 20

// MetadataSetter is implemented by Machines whose VMM has a metadata service
// (Capabilities.Metadata), if Config.Metadata was given.
type MetadataSetter interface {
	// SetMetadata replaces what the guest can read by another JSON object of at
	// most MaxMetadata bytes. An empty object, {}, takes it back: after the agent
	// has read it, nothing else in the guest needs it, and it may hold secrets.
	SetMetadata(ctx context.Context, object json.RawMessage) error
}

// Ballooner is implemented by Machines that can take memory back from their
// guest while it runs. Every guest has the device, with nothing in it at first,
// so that machines do not differ in it.
type Ballooner interface {
	// SetBalloon asks the guest to give up so many MiB, or back what it gave
	// up beyond that; 0: all. The guest does so in its own time, and takes
	// memory back by itself rather than run out of it. It returns when the
	// guest has been asked.
	SetBalloon(ctx context.Context, mib int) error
}

// Exit is how a VMM's process ended.
type Exit struct {
	Code   int    // exit code; -1 when Signal is set
	Signal int    // the signal that ended it, or 0
	Reason string // one line for people: "guest powered off", "killed by SIGKILL", …
}

// Launcher starts the VMM's process where it is to live: as a plain child, or
// in namespaces that a network backend made. The process dies with this one.
type Launcher interface {
	Launch(ctx context.Context, cmd Command) (Process, error)
}

// Command is a program to start. Path is absolute, Dir its working directory.
type Command struct {
	Path   string
	Args   []string // without the program's name
	Env    []string
	Dir    string
	Stdin  *os.File // nil: /dev/null
	Stdout *os.File
	Stderr *os.File
	Extra  []*os.File // descriptors 3, 4, …
	Cgroup *os.File   // the control group that it is born into; nil: this process's
	// Seccomp is a filter of its system calls (seccomp(2)), which comes with
	// no-new-privileges; nil: none.
	Seccomp []unix.SockFilter
}

// Process is a started VMM.
type Process interface {
	PID() int
	Signal(sig os.Signal) error
	// Wait returns when the process has ended; it may be called many times.
	Wait() Exit
}

// CheckFiles reports the first file of the configuration that cannot be read
// or, for a writable disk, written, by name: VMMs say it less clearly.
func (c *Config) CheckFiles() error {
	type file struct {
		what, name string
		flag       int
	}
	files := []file{{"kernel", c.Kernel, os.O_RDONLY}, {"initramfs", c.Initrd, os.O_RDONLY}}
	for _, d := range c.Disks {
		f := file{"disk " + d.ID, d.Path, os.O_RDWR}
		if d.ReadOnly {
			f.flag = os.O_RDONLY
		}
		files = append(files, f)
	}
	for _, f := range files {
		h, err := os.OpenFile(filepath.Join(c.Dir, f.name), f.flag, 0)
		if err != nil {
			return fmt.Errorf("open the VM's %s: %w", f.what, err)
		}
		_ = h.Close()
	}
	return nil
}
