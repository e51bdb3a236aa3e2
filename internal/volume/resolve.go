package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fcvm/fcvm/internal/vm"
)

// Flags are a run's -v, --mount and --map-mode, as typed.
type Flags struct {
	Volumes []string // -v
	Maps    []string // --map, which is the same
	Mounts  []string
	Mode    Mode
}

// Resolve reads the flags and looks at what they name on the host: directories
// and files become shares (or, by the mode, disks made of them), disk images and
// block devices disks.
func (f Flags) Resolve() ([]vm.Mount, error) {
	var mounts []vm.Mount
	for _, list := range []struct {
		args  []string
		parse func(string) (request, error)
		flag  string
	}{{f.Volumes, parseVolume, "-v"}, {f.Maps, parseVolume, "--map"}, {f.Mounts, parseMount, "--mount"}} {
		for _, arg := range list.args {
			r, err := list.parse(arg)
			if err != nil {
				return nil, err
			}
			m, err := r.resolve(f.Mode)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", list.flag, arg, err)
			}
			mounts = append(mounts, m)
		}
	}
	return mounts, nil
}

func (r request) resolve(mode Mode) (vm.Mount, error) {
	m := r.Mount
	if m.Kind == vm.MountVolume && m.SizeMiB == 0 {
		m.SizeMiB = DefaultSizeMiB
	}
	if !r.path {
		return m, nil
	}
	abs, err := filepath.Abs(m.Source)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return m, err
	}
	m.Source = abs
	fi, err := os.Stat(abs)
	if err != nil {
		return m, err
	}
	device := isBlockDevice(fi)
	switch {
	case fi.IsDir():
		if m.Kind == "" && mode == ModeBlock {
			m.Kind = vm.MountBlock
		}
		if m.Kind == vm.MountDisk {
			return m, fmt.Errorf("%w: %s is a directory, not a disk", vm.ErrInvalid, abs)
		}
	case fi.Mode().IsRegular() || device:
		if r.bind && m.Kind == "" {
			m.Kind = vm.MountShare
		}
		err := resolveFile(&m, device)
		return m, err
	default:
		return m, fmt.Errorf("%w: %s is neither a directory nor a file nor a block device", vm.ErrInvalid, abs)
	}
	if m.Kind == "" {
		m.Kind = vm.MountShare
	}
	if m.Kind == vm.MountBlock {
		m.SizeMiB = DefaultSizeMiB
	}
	return m, nil
}

// resolveFile says what a file or device of the host's becomes.
func resolveFile(m *vm.Mount, device bool) error {
	if m.Kind == vm.MountBlock || (m.Kind == vm.MountShare && device) {
		return fmt.Errorf("%w: %s is no directory", vm.ErrInvalid, m.Source)
	}
	ext4, unclean, err := lookAtDisk(m.Source)
	switch {
	case err != nil:
		return err
	case m.Kind == "" && !device && !ext4:
		m.Kind = vm.MountShare
	case m.Kind == "":
		m.Kind = vm.MountDisk
	}
	m.File = m.Kind == vm.MountShare
	if m.Kind == vm.MountDisk && m.ReadOnly && unclean {
		return uncleanError(m.Source)
	}
	if m.Kind == vm.MountDisk && !ext4 {
		return fmt.Errorf("%w: %s holds no ext4 file system, which is what guests mount; make one with mkfs.ext4", vm.ErrInvalid, m.Source)
	}
	return nil
}

// errUnclean: what was last written is in the journal only, and to read that a
// guest would have to write.
var errUnclean = errors.New("it was last written by a VM that was killed: mount it once without :ro, so that its file system is repaired")

// uncleanError is errUnclean, unless somebody is still at work on the disk: then it
// says that.
func uncleanError(path string) error {
	h, err := Device(path, true)
	if err != nil {
		return err
	}
	return errors.Join(errUnclean, h.Close())
}

// lookAtDisk reports whether a file has the mark of ext2, ext3 or ext4 in its
// superblock, and whether its journal has to be written back first:
// https://docs.kernel.org/filesystems/ext4/super.html
func lookAtDisk(path string) (ext4, unclean bool, err error) {
	const superblock, mark, magic, features, needsRecovery = 1024, 0x38, 0xef53, 0x60, 0x4
	f, err := os.Open(path)
	if err != nil {
		return false, false, err
	}
	defer func() { _ = f.Close() }()
	var b [features + 4]byte
	if _, err := f.ReadAt(b[:], superblock); err != nil {
		return false, false, nil //nolint:nilerr // it is shorter than any file system
	}
	ext4 = binary.LittleEndian.Uint16(b[mark:]) == magic
	return ext4, ext4 && binary.LittleEndian.Uint32(b[features:])&needsRecovery != 0, nil
}
