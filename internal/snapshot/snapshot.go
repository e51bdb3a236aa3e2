// Package snapshot keeps snapshots of VMs on disk: what one consists of, what
// it needs of the host to be started from, and who uses it.
//
// A snapshot is made as a Draft, in a directory that no listing shows, and
// appears whole, by a rename, when it is committed; a process that dies before
// leaves a directory that the next one sweeps away. From then on its files
// never change: clones map its memory. Whoever starts VMs from it holds it
// (Hold), and while it is held it cannot be removed.
//
// Nothing here knows how a snapshot is taken, or how a VM is started from one:
// that is the supervisor's business, with the drivers (package vmm).
package snapshot

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/fcvm/fcvm/internal/vm"
)

// Sentinel errors of snapshots. The messages around them name the snapshot and
// say what to do.
var (
	// ErrNotFound: there is no such snapshot.
	ErrNotFound = errors.New("no such snapshot")
	// ErrNameTaken: another snapshot has that name.
	ErrNameTaken = errors.New("snapshot name is in use")
	// ErrInUse: VMs run from the snapshot.
	ErrInUse = errors.New("snapshot is in use")
	// ErrMismatch: this host, or what is installed on it, is not what the
	// snapshot was made with.
	ErrMismatch = errors.New("snapshot cannot be started here")
	// ErrCorrupt: the snapshot's files are not what they were.
	ErrCorrupt = errors.New("snapshot is damaged")
	// ErrNewerSchema: a newer fcvm has made it.
	ErrNewerSchema = errors.New("snapshot is of a newer fcvm")
	// ErrNoSpace: there is no room for it.
	ErrNoSpace = errors.New("no space left for the snapshot")
	// ErrAmbiguous: an id's prefix fits several.
	ErrAmbiguous = errors.New("ambiguous snapshot")
)

// Schema is the version of Manifest's form on disk. A manifest of a newer
// schema is never read.
const Schema = 1

// Names of a snapshot's files. Disks have the names that they have in a VM's
// directory (package paths).
const (
	MemoryName     = "memory"
	StateName      = "state"
	WorkingSetName = "workingset" // written later, by a memory server
)

// MaxAutomatic is how many automatic snapshots are kept, those that were used
// last. Each takes what its guest had in memory: some 200 MiB.
const MaxAutomatic = 8

// Manifest is all that is known of a snapshot.
type Manifest struct {
	Schema int    `json:"schema"`
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"` // empty: it goes with its last user
	// Created is when the guest stood still: what it did later is not in it.
	Created time.Time `json:"created"`
	// Imported: it comes from an archive. The VM with its source's id, if there is
	// one here, may have gone another way since.
	Imported bool `json:"imported,omitempty"`

	// Key is what an automatic snapshot is found by: a digest of all that the
	// state of its guest depends on. Empty: somebody asked for the snapshot.
	Key string `json:"key,omitempty"`

	// Unsynced is the host's boot during which the files were written, if nobody
	// has waited for them to reach the disk: in another one they are read before
	// they are used. Empty: they are on the disk.
	Unsynced string `json:"unsynced,omitempty"`

	Source  Source     `json:"source"`
	Needs   Needs      `json:"needs"`
	Spec    vm.Spec    `json:"spec"`    // of the VM that it was taken of
	Process vm.Runtime `json:"process"` // of its container
	Command []string   `json:"command,omitempty"`
	Link    vm.Link    `json:"link,omitzero"` // the guest's; empty: it has no interface
	// DeviceMTU is what the guest's network device was made with, bytes; 0: the
	// VMM's default.
	DeviceMTU int `json:"device_mtu,omitempty"`
	// DeviceTap: the device was made for a tap. What it has agreed upon with the
	// guest, nothing but a tap can keep to.
	DeviceTap bool          `json:"device_tap,omitempty"`
	Disks     []Disk        `json:"disks"` // in the guest's order
	Files     []File        `json:"files"`
	Pause     time.Duration `json:"pause"` // how long the guest stood still; nanoseconds
	Guest     GuestState    `json:"guest"`
}

// GuestState says how far the guest was.
type GuestState string

// The states in which snapshots are taken.
const (
	GuestUp      GuestState = "up"      // it is up and has no plan: any container can be started in it
	GuestRunning GuestState = "running" // its container runs
)

// Source is the VM that a snapshot was taken of.
type Source struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Snapshot string `json:"snapshot,omitempty"` // id of the one that it was started from itself
	Started  int    `json:"restarts,omitempty"` // how often it had been restarted
}

// Needs is what a host must have to start VMs from a snapshot.
type Needs struct {
	Arch        string `json:"arch"`
	Driver      string `json:"driver"`
	VMMVersion  string `json:"vmm_version"`
	Agent       int    `json:"agent"`       // version of its protocol (agentapi.Version)
	Accelerated bool   `json:"accelerated"` // by KVM: then the CPU must be the same
	CPU         CPU    `json:"cpu,omitzero"`
	CPUs        int    `json:"cpus"`
	MemoryMiB   int    `json:"memory_mib"`
	HugePages   bool   `json:"huge_pages,omitempty"`
	KernelID    string `json:"kernel_id"`
	RootID      string `json:"root_id"`
	Image       string `json:"image"` // the reference, for people
	ImageDigest string `json:"image_digest"`
}

// CPU is a processor as far as guests depend on it.
type CPU struct {
	Model    string `json:"model"`    // for people
	Features string `json:"features"` // digest of what it can do
}

// Disk is one of the guest's.
type Disk struct {
	ID       string `json:"id"`
	Name     string `json:"name"` // in the VM's directory
	ReadOnly bool   `json:"read_only"`
	// Path is where a read-only disk lies that is neither guest root nor
	// image. Writable disks are among the snapshot's files.
	Path string `json:"path,omitempty"`
	// Contents are those of a disk at Path since the guest has it. Zero: the
	// snapshot is from before they were kept.
	Contents Contents `json:"contents,omitzero"`
}

// File is one of the snapshot's own files.
type File struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes, with holes
	// Data is how much of it an archive has, bytes: all chunks of 64 KiB that are
	// not zeros.
	Data int64 `json:"data,omitempty"`
	// Digest is of its contents: see Digest. Empty, as Data is: nobody has read
	// the file yet (Draft.Boot), and it is known by its stamp alone.
	Digest string `json:"digest"`
	// Stamp is the file as it was when its digest was last right.
	Stamp Stamp `json:"stamp"`
}

// Stamp identifies a file that has not been touched.
type Stamp struct {
	Inode uint64    `json:"inode"`
	MTime time.Time `json:"mtime"`
}

// Title is how a snapshot is spoken of: its name, or its id.
func (m *Manifest) Title() string {
	if m.Name != "" {
		return m.Name
	}
	return m.ID
}

// Automatic reports whether fcvm has taken the snapshot by itself, to start
// other VMs sooner.
func (m *Manifest) Automatic() bool { return m.Key != "" }

// CheckRuns refuses a snapshot of a guest whose container was not started yet: fcvm
// run finds it by its key, and nobody else can use it. The error wraps vm.ErrInvalid.
func (m *Manifest) CheckRuns() error {
	if m.Guest == GuestRunning {
		return nil
	}
	return fmt.Errorf("%w: snapshot %s was taken before its container was started; it is for fcvm run alone", vm.ErrInvalid, m.Title())
}

// nameless reports whether the snapshot goes with its last user.
func (m *Manifest) nameless() bool { return m.Name == "" && !m.Automatic() }

// Check says whether a host that has those things can start VMs from a
// snapshot that needs these. The error wraps ErrMismatch and names the first
// thing that differs.
func (n *Needs) Check(title string, has Needs) error {
	for _, c := range []struct {
		what, want, got, hint string
	}{
		{"architecture", n.Arch, has.Arch, "it can only be used on such a machine"},
		{"VMM", n.Driver, has.Driver, "give --vmm " + n.Driver + ", on a host that can run it"},
		{n.Driver + " version", n.VMMVersion, has.VMMVersion, "install that version, or take the snapshot again"},
		{"agent protocol", strconv.Itoa(n.Agent), strconv.Itoa(has.Agent), "take the snapshot again with this fcvm"},
		{"acceleration", acceleration(n.Accelerated), acceleration(has.Accelerated), "take the snapshot again on this host"},
		{"CPU", n.CPU.text(), has.CPU.text(), "take the snapshot again on this host"},
	} {
		if c.want != c.got {
			return fmt.Errorf("%w: %s: it was made with the %s %s, here it is %s\nhint: %s", ErrMismatch, title, c.what, orNone(c.want), orNone(c.got), c.hint)
		}
	}
	return nil
}

func acceleration(kvm bool) string {
	if kvm {
		return "KVM"
	}
	return "emulation"
}

func (c CPU) text() string {
	if c == (CPU{}) {
		return ""
	}
	return fmt.Sprintf("%s (features %.12s)", c.Model, c.Features)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
