package vm

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// How many mounts a VM has at most, and how many of them may be disks: each is
// a device of the guest's, and Firecracker has interrupts for some twenty.
const (
	MaxMounts = 32
	MaxDisks  = 10
)

// MountKind is what a mount of the container's is.
type MountKind string

// The kinds of mounts.
const (
	MountShare     MountKind = "share"     // a directory or file of the host's, live
	MountBlock     MountKind = "block"     // a disk made of a directory: the VM's own
	MountDisk      MountKind = "disk"      // a disk image or block device of the host's
	MountVolume    MountKind = "volume"    // a named volume
	MountAnonymous MountKind = "anonymous" // a directory on the scratch disk
	MountTmpfs     MountKind = "tmpfs"     // memory of the guest's
)

// Mount is one thing that the container sees besides its image.
type Mount struct {
	Kind     MountKind `json:"kind"`
	Source   string    `json:"source,omitempty"` // absolute, or a volume's name
	Target   string    `json:"target"`           // absolute, in the container
	ReadOnly bool      `json:"read_only,omitempty"`
	File     bool      `json:"file,omitempty"`    // of a share: it is one file
	NoCopy   bool      `json:"no_copy,omitempty"` // of a volume: what the image has there does not go into it
	SizeMiB  int       `json:"size,omitempty"`    // of a volume that is made for it; of the free room on a block disk
	Options  string    `json:"options,omitempty"` // of a tmpfs, as --tmpfs takes them
}

// OnDisk reports whether the guest has a disk for it.
func (m Mount) OnDisk() bool {
	return m.Kind == MountBlock || m.Kind == MountDisk || m.Kind == MountVolume
}

// String is the mount as -v and --mount have it, for messages.
func (m Mount) String() string {
	if m.Source == "" {
		return m.Target
	}
	return m.Source + ":" + m.Target
}

// CheckTarget refuses a place in the container where nothing can be mounted.
func CheckTarget(target string) error {
	switch {
	case !strings.HasPrefix(target, "/"):
		return fmt.Errorf("%w: %q: the place in the container is an absolute path", ErrInvalid, target)
	case path.Clean(target) == "/":
		return fmt.Errorf("%w: %q: the container's root is its image", ErrInvalid, target)
	case strings.ContainsAny(target, ":\x00") || !utf8.ValidString(target):
		return fmt.Errorf("%w: %q: a place in the container is UTF-8 text without a colon", ErrInvalid, target)
	}
	return nil
}

// checkMounts refuses mounts that rule each other out.
func checkMounts(mounts []Mount, tmpfs []string) error {
	if len(mounts) > MaxMounts {
		return fmt.Errorf("%w: %d mounts: a VM has %d at most", ErrInvalid, len(mounts), MaxMounts)
	}
	disks := 0
	at := map[string]bool{}
	for _, t := range tmpfs {
		dir, _, _ := strings.Cut(t, ":")
		at[path.Clean(dir)] = true
	}
	for _, m := range mounts {
		if err := CheckTarget(m.Target); err != nil {
			return err
		}
		if at[m.Target] {
			return fmt.Errorf("%w: two mounts at %s", ErrInvalid, m.Target)
		}
		at[m.Target] = true
		if m.OnDisk() {
			disks++
		}
	}
	if disks > MaxDisks {
		return fmt.Errorf("%w: %d mounts that are disks: a VM has %d at most", ErrInvalid, disks, MaxDisks)
	}
	return nil
}
