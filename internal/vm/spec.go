// Package vm is the domain: what a VM is asked to be (Spec), what it is
// (Record) and which changes of state are allowed. It knows nothing of
// drivers, networks or the command line, touches no file and starts no
// process.
package vm

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of what a Spec may ask for. They bound what is sent to a VMM, not
// what is wise.
const (
	MinMemoryMiB = 128 // below it the guest's kernel and Podman do not come up
	MaxMemoryMiB = 1 << 20
	MaxCPUs      = 32 // Firecracker's limit
	MaxLogMiB    = 1 << 20

	hugePageMiB = 2

	MinScratchMiB     = 16
	DefaultScratchMiB = 16 << 10
	MaxScratchMiB     = 8 << 20
	MinDiskRate       = 1 << 20 // bytes a second
	MinDiskOps        = 10      // requests a second

	MinIORate = 1 << 20 // bytes a second; with less a guest takes minutes to boot
)

// Init says what is process 1 of the guest once it is up.
type Init string

// The two inits of the guest.
const (
	InitAgent   Init = "agent"   // fc-agent stays process 1: fast
	InitSystemd Init = "systemd" // systemd, with fc-agent.service
)

// Logs says where a container's output goes.
type Logs string

// The three ways of --logs.
const (
	LogsStream Logs = "stream" // to fcvm's own stdout and stderr
	LogsFile   Logs = "file"   // to the VM's log file
	LogsBoth   Logs = "both"
)

// Spec is what the user asked for, as resolved from the command line: it is
// complete, holds no defaults left to fill in, and is stored with the VM.
type Spec struct {
	Image     string `json:"image"`      // the reference as given
	Driver    string `json:"driver"`     // "auto", "firecracker" or "qemu"
	CPUs      int    `json:"cpus"`       // virtual CPUs
	MemoryMiB int    `json:"memory_mib"` // guest memory
	// HugePages backs the guest's memory by the host's huge pages of 2 MiB.
	HugePages bool `json:"huge_pages,omitempty"`
	// BalloonMiB is what the guest is to give up of it once it has booted.
	BalloonMiB int               `json:"balloon_mib,omitempty"`
	Init       Init              `json:"init"`              //
	Labels     map[string]string `json:"labels,omitzero"`   //
	Logs       Logs              `json:"logs"`              //
	LogMiB     int               `json:"log_mib,omitempty"` // the log's limit; 0: package logs' own
	Remove     bool              `json:"remove"`            // drop the record when the VM has ended
	Network    NetworkSpec       `json:"network"`           //
	Container  ContainerSpec     `json:"container"`         //
	Restart    Restart           `json:"restart,omitzero"`
	Gate       Gate              `json:"gate,omitzero"`
	Health     *Health           `json:"health,omitempty"` // in place of the image's
	// OnRestore are commands for the container's shell, which every VM that is
	// started from a snapshot of this one runs before it is ready.
	OnRestore []string `json:"on_restore,omitempty"`

	Mounts     []Mount `json:"mounts,omitempty"`
	ScratchMiB int     `json:"scratch_mib,omitempty"` // what the container and the guest may write; 0, as in snapshots from before: DefaultScratchMiB
	// DiskRate and DiskOps bound what the guest has of each of its disks: bytes
	// and requests a second, reads and writes together; 0: no bound.
	DiskRate uint64 `json:"disk_rate,omitzero"`
	DiskOps  uint64 `json:"disk_ops,omitzero"`

	// IORate bounds what the VM reads from the host's disk, and what it writes
	// there: bytes a second; 0: no bound.
	IORate uint64 `json:"io_rate,omitzero"`

	// BootTimeout bounds the time from the VMM's start to the agent's
	// answer; 0 takes the driver's default.
	BootTimeout time.Duration `json:"boot_timeout,omitzero"`
}

// NetworkSpec is the part of Spec that the network backends read.
type NetworkSpec struct {
	Backend  string   `json:"backend"`            // "auto", "usernet", "none", …
	Mode     Mode     `json:"mode,omitempty"`     // what "auto" may take
	Publish  []string `json:"publish,omitempty"`  // as given to -p
	Egress   []string `json:"egress,omitempty"`   // as given to --egress; none: everything is allowed
	DNS      []string `json:"dns,omitempty"`      // IP addresses of name servers in place of the host's
	Search   []string `json:"search,omitempty"`   // domains
	AddHosts []string `json:"add_host,omitempty"` // NAME:IP
	IP       string   `json:"ip,omitempty"`       // on the bridge; empty: any
	Isolated bool     `json:"isolated,omitempty"` // from other VMs on the bridge
	Subnet   string   `json:"subnet,omitempty"`   // of the bridge; empty: the default
}

// Mode says which networks are taken when the backend is "auto".
type Mode string

// The three modes.
const (
	ModeAuto       Mode = "auto"       // the bridge for root, else usernet
	ModeRootless   Mode = "rootless"   // usernet, for root too
	ModePrivileged Mode = "privileged" // the bridge, or none at all
)

// ContainerSpec is what the container is to be, on top of its image.
// Slices that are nil leave the image's own value.
type ContainerSpec struct {
	Entrypoint  []string `json:"entrypoint,omitzero"` // nil: the image's; empty: none
	Command     []string `json:"command,omitempty"`
	Env         []string `json:"env,omitempty"` // KEY=VALUE
	WorkDir     string   `json:"work_dir,omitempty"`
	User        string   `json:"user,omitempty"`
	Hostname    string   `json:"hostname,omitempty"`
	Privileged  bool     `json:"privileged,omitempty"`
	ReadOnly    bool     `json:"read_only,omitempty"`
	CapAdd      []string `json:"cap_add,omitempty"`
	CapDrop     []string `json:"cap_drop,omitempty"`
	Tmpfs       []string `json:"tmpfs,omitempty"` // PATH[:OPTIONS], as Podman takes it
	Interactive bool     `json:"interactive,omitempty"`
	TTY         bool     `json:"tty,omitempty"`
}

// Validate reports the first thing in s that no driver could do.
func (s *Spec) Validate() error {
	switch {
	case s.Image == "":
		return fmt.Errorf("%w: no image given", ErrInvalid)
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return fmt.Errorf("%w: --cpu %d: a VM has 1 to %d virtual CPUs", ErrInvalid, s.CPUs, MaxCPUs)
	case s.MemoryMiB < MinMemoryMiB || s.MemoryMiB > MaxMemoryMiB:
		return fmt.Errorf("%w: --mem %d: a VM has %d to %d MiB of memory", ErrInvalid, s.MemoryMiB, MinMemoryMiB, MaxMemoryMiB)
	case s.HugePages && s.MemoryMiB%hugePageMiB != 0:
		return fmt.Errorf("%w: --mem %d: with --hugepages it is a multiple of %d MiB", ErrInvalid, s.MemoryMiB, hugePageMiB)
	case s.CheckBalloon(s.BalloonMiB) != nil:
		return s.CheckBalloon(s.BalloonMiB)
	case s.IORate != 0 && s.IORate < MinIORate:
		return fmt.Errorf("%w: --io-max %d: it is at least %d bytes a second", ErrInvalid, s.IORate, MinIORate)
	case s.ScratchMiB != 0 && s.ScratchMiB < MinScratchMiB || s.ScratchMiB > MaxScratchMiB:
		return fmt.Errorf("%w: --scratch-size %d: a scratch disk has %d MiB to %d TiB", ErrInvalid, s.ScratchMiB, MinScratchMiB, MaxScratchMiB>>20)
	case s.DiskRate != 0 && s.DiskRate < MinDiskRate:
		return fmt.Errorf("%w: --disk-bps %d: it is at least %d bytes a second", ErrInvalid, s.DiskRate, MinDiskRate)
	case s.DiskOps != 0 && s.DiskOps < MinDiskOps:
		return fmt.Errorf("%w: --disk-iops %d: it is at least %d requests a second", ErrInvalid, s.DiskOps, MinDiskOps)
	case s.Init != InitAgent && s.Init != InitSystemd:
		return fmt.Errorf("%w: --init %q: it is agent or systemd", ErrInvalid, s.Init)
	case s.Logs != LogsStream && s.Logs != LogsFile && s.Logs != LogsBoth:
		return fmt.Errorf("%w: --logs %q: it is stream, file or both", ErrInvalid, s.Logs)
	case s.LogMiB < 0 || s.LogMiB > MaxLogMiB:
		return fmt.Errorf("%w: --log-size %d: a log keeps 1 to %d MiB", ErrInvalid, s.LogMiB, MaxLogMiB)
	}
	for key, value := range s.Labels {
		if err := checkText("label", key+"="+value); err != nil {
			return err
		}
	}
	if err := cmp.Or(checkText("workdir", s.Container.WorkDir), checkText("user", s.Container.User), checkText("tmpfs", s.Container.Tmpfs...)); err != nil {
		return err
	}
	if err := cmp.Or(checkMounts(s.Mounts, s.Container.Tmpfs), checkText("on-restore", s.OnRestore...)); err != nil {
		return err
	}
	return s.Container.validate()
}

// CheckBalloon refuses to take more from the guest than it can do without.
func (s *Spec) CheckBalloon(mib int) error {
	if most := s.MemoryMiB - MinMemoryMiB; mib < 0 || mib > most {
		return fmt.Errorf("%w: --balloon %d: of a VM's %d MiB it takes 0 to %d, since a guest needs %d", ErrInvalid, mib, s.MemoryMiB, most, MinMemoryMiB)
	}
	return nil
}

func (c *ContainerSpec) validate() error {
	if c.Hostname != "" && (len(c.Hostname) > maxHostname || !hostnamePattern.MatchString(c.Hostname)) {
		return fmt.Errorf("%w: --hostname %q: it has letters, digits, dots and hyphens, at most %d", ErrInvalid, c.Hostname, maxHostname)
	}
	return CheckCommand(slices.Concat(c.Entrypoint, c.Command), c.Env)
}

// CheckCommand refuses a command and variables for it that cannot reach the guest as
// they are: everything goes there in JSON, which is UTF-8, and to the process in
// strings that end with a zero. The error wraps ErrInvalid.
func CheckCommand(args, env []string) error {
	for _, arg := range args {
		if !sendable(arg) {
			return fmt.Errorf("%w: %q in the command: it is not UTF-8 text, or holds a zero byte", ErrInvalid, arg)
		}
	}
	for _, kv := range env {
		if name, _, _ := strings.Cut(kv, "="); !sendable(kv) { // the value may be a secret
			return fmt.Errorf("%w: --env %q: its value is not UTF-8 text, or holds a zero byte; encode it, as with base64", ErrInvalid, name)
		}
	}
	return nil
}

// maxHostname is the kernel's limit, characters (gethostname(2)).
const maxHostname = 64

// hostnamePattern is that of RFC 1123, and underscores, which some have.
var hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// checkText refuses what would not reach the guest, or the record, as it is.
func checkText(flag string, values ...string) error {
	for _, v := range values {
		if !utf8.ValidString(v) {
			return fmt.Errorf("%w: --%s %q is not UTF-8 text", ErrInvalid, flag, v)
		}
	}
	return nil
}

func sendable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
