// Package paths knows every file and directory name that fcvm uses on the
// host. Nothing else joins a path below the data or the runtime directory.
//
//	DATA/                        0700
//	  setup.json                 what setup installed, with checksums
//	  lock                       locked to create or remove a VM
//	  events.jsonl               what happened to VMs
//	  setup.lock                 locked for one setup at a time
//	  use.lock                   shared by VMs that are about to use what setup installed
//	  bin/                       VMMs that setup installed
//	  kernels/ID/                vmlinux, modules, initramfs-AGENT.cpio
//	  roots/ID/rootfs.ext4       guest roots
//	  scratch/                   templates of empty scratch disks, by size
//	  images/                    the image cache (package image)
//	  versions.json              what VMMs have said to --version
//	  snapshots/ID/              one snapshot (package snapshot)
//	  volumes/NAME/              named volumes: disk.ext4, volume.json, lock
//	  vms/ID/                    one VM: record, lock, disks, logs, the VMM's sockets,
//	                             room for the record, a link to its control group
//	RUNTIME/vms/ID.sock          the supervisor's control socket
//	RUNTIME/memory/ID.sock       the socket of a snapshot's memory server
//	RUNTIME/memory/ID.log        what it has to say, when it is in the background
package paths

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// SocketLimit is the longest path that fits into sockaddr_un, without its
// terminating zero (unix(7)).
const SocketLimit = 107

// ErrSocketPath: a Unix socket's path would be too long.
var ErrSocketPath = errors.New("path too long for a Unix socket")

// Layout is where one installation's files lie.
type Layout struct {
	Data    string // absolute
	Runtime string // absolute
}

// Resolve finds the layout: dataDir if given, else $FCVM_DATA_DIR, else
// /var/lib/fcvm for root and $XDG_DATA_HOME/fcvm (~/.local/share/fcvm) for
// others. What is for this boot only lies in $FCVM_RUNTIME_DIR, else in
// /run/fcvm for root and $XDG_RUNTIME_DIR/fcvm (/tmp/fcvm-UID) for others. As
// the XDG Base Directory Specification has it, a relative path in one of its
// variables is as good as none. Resolve creates nothing.
func Resolve(dataDir string, getenv func(string) string, uid int) (Layout, error) {
	if dataDir == "" {
		dataDir = getenv("FCVM_DATA_DIR")
	}
	if dataDir == "" && uid == 0 {
		dataDir = "/var/lib/fcvm"
	}
	if dataDir == "" {
		base := getenv("XDG_DATA_HOME")
		if !filepath.IsAbs(base) {
			home := getenv("HOME")
			if home == "" {
				return Layout{}, errors.New("find the data directory: neither HOME nor XDG_DATA_HOME is set; give --data-dir")
			}
			base = filepath.Join(home, ".local", "share")
		}
		dataDir = filepath.Join(base, "fcvm")
	}
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		return Layout{}, fmt.Errorf("find the data directory: %w", err)
	}
	run, err := filepath.Abs(runtimeDir(getenv, uid))
	if err != nil {
		return Layout{}, fmt.Errorf("find the runtime directory: %w", err)
	}
	return Layout{Data: abs, Runtime: run}, nil
}

func runtimeDir(getenv func(string) string, uid int) string {
	if d := getenv("FCVM_RUNTIME_DIR"); d != "" {
		return d
	}
	if uid == 0 {
		return "/run/fcvm"
	}
	if d := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "fcvm")
	}
	// Not $TMPDIR: every command must find the same.
	return fmt.Sprintf("/tmp/fcvm-%d", uid)
}

// Names below the data directory.

func (l Layout) Setup() string            { return filepath.Join(l.Data, "setup.json") }
func (l Layout) Lock() string             { return filepath.Join(l.Data, "lock") }
func (l Layout) UseLock() string          { return filepath.Join(l.Data, "use.lock") }
func (l Layout) SetupLock() string        { return filepath.Join(l.Data, "setup.lock") }
func (l Layout) Bin() string              { return filepath.Join(l.Data, "bin") }
func (l Layout) Kernels() string          { return filepath.Join(l.Data, "kernels") }
func (l Layout) Roots() string            { return filepath.Join(l.Data, "roots") }
func (l Layout) ScratchTemplates() string { return filepath.Join(l.Data, "scratch") }
func (l Layout) Images() string           { return filepath.Join(l.Data, "images") }
func (l Layout) Snapshots() string        { return filepath.Join(l.Data, "snapshots") }
func (l Layout) Versions() string         { return filepath.Join(l.Data, "versions.json") }
func (l Layout) Events() string           { return filepath.Join(l.Data, "events.jsonl") }
func (l Layout) VMs() string              { return filepath.Join(l.Data, "vms") }
func (l Layout) VM(id string) VMDir       { return VMDir(filepath.Join(l.VMs(), id)) }
func (l Layout) Volumes() string          { return filepath.Join(l.Data, "volumes") }
func (l Layout) Volume(name string) VolumeDir {
	return VolumeDir(filepath.Join(l.Volumes(), name))
}

// VolumeDir is one named volume's directory.
type VolumeDir string

func (d VolumeDir) join(name string) string { return filepath.Join(string(d), name) }

func (d VolumeDir) Disk() string { return d.join("disk.ext4") }
func (d VolumeDir) Info() string { return d.join("volume.json") }
func (d VolumeDir) Lock() string { return d.join("lock") } // held by VMs that use it: shared by readers, or by one writer

// ControlSuffix ends the name of a control socket; the VM's id is before it.
const ControlSuffix = ".sock"

// ControlSockets is where the supervisors of all VMs listen.
func (l Layout) ControlSockets() string { return filepath.Join(l.Runtime, "vms") }

// ControlSocket is where the supervisor of a VM listens.
func (l Layout) ControlSocket(id string) (string, error) {
	return checkSocket(filepath.Join(l.ControlSockets(), id+ControlSuffix))
}

// RemoveControlSocket drops what a supervisor that died has left.
func (l Layout) RemoveControlSocket(id string) error {
	path, err := l.ControlSocket(id)
	if err != nil {
		return nil // it could never have been made
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove control socket: %w", err)
	}
	return nil
}

// MemorySockets is where the memory servers of all snapshots listen.
func (l Layout) MemorySockets() string { return filepath.Join(l.Runtime, "memory") }

// MemorySocket is where the memory server of a snapshot listens.
func (l Layout) MemorySocket(id string) (string, error) {
	return checkSocket(filepath.Join(l.MemorySockets(), id+ControlSuffix))
}

// MemoryLog is of a snapshot's memory server in the background.
func (l Layout) MemoryLog(id string) string { return filepath.Join(l.MemorySockets(), id+".log") }

// VMDir is one VM's directory, which is also its VMM's working directory.
type VMDir string

// Names relative to a VMDir, as the VMM is told them.
const (
	KernelName  = "kernel"
	InitrdName  = "initrd"
	RootName    = "rootfs.ext4"
	ImageName   = "image.ext4"
	ScratchName = "scratch.ext4"
	VsockName   = "vsock.sock"
	CgroupName  = "cgroup" // a link to the VM's control group, while there is one
)

// VolumeName is the n-th disk of a VM's mounts, from 0 on: its own file, or a
// link to what others may use, too.
func VolumeName(n int) string { return fmt.Sprintf("volume%d.ext4", n) }

func (d VMDir) join(name string) string { return filepath.Join(string(d), name) }

func (d VMDir) Record() string       { return d.join("state.json") }
func (d VMDir) Lock() string         { return d.join("lock") }
func (d VMDir) Console() string      { return d.join("console.log") }
func (d VMDir) VMMLog() string       { return d.join("vmm.log") }
func (d VMDir) ContainerLog() string { return d.join("container.log") }
func (d VMDir) Scratch() string      { return d.join(ScratchName) }
func (d VMDir) Reserve() string      { return d.join("reserve") } // room for the record on a disk that is full
func (d VMDir) Cgroup() string       { return d.join(CgroupName) }

func checkSocket(path string) (string, error) {
	if len(path) > SocketLimit {
		return "", fmt.Errorf("%w: %q has %d bytes, the limit is %d; set XDG_RUNTIME_DIR to a shorter directory", ErrSocketPath, path, len(path), SocketLimit)
	}
	return path, nil
}
