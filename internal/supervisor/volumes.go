package supervisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/volume"
)

// volumeDisk is the disk of one of the mounts.
type volumeDisk struct {
	path     string // on the host; empty: the VM's own, in its directory
	readOnly bool   // never of its own: a snapshot copies what can be written
	device   bool   // it is a block device
	// contents are those of a read-only one, which others may write when no VM has it.
	contents snapshot.Contents
}

// takeVolumes takes the disks of the mounts, or makes them, once for all boots:
// what is written to them stays.
func (l *life) takeVolumes(ctx context.Context) error {
	if !slices.ContainsFunc(l.Spec.Mounts, vm.Mount.OnDisk) {
		return nil
	}
	defer l.timer.phase("volumes")()
	for _, m := range l.Spec.Mounts {
		if !m.OnDisk() {
			continue
		}
		d, err := l.takeVolume(ctx, m)
		if err != nil {
			return err
		}
		l.volumes = append(l.volumes, d)
	}
	if l.Clone != nil { // from now on nobody writes to them
		return l.Clone.Snapshot.Manifest.CheckDisks()
	}
	return nil
}

func (l *life) takeVolume(ctx context.Context, m vm.Mount) (volumeDisk, error) {
	var (
		d   volumeDisk
		h   *volume.Hold
		err error
	)
	switch {
	case l.Clone != nil && !m.ReadOnly, l.Clone != nil && m.Kind == vm.MountBlock:
		return d, nil // a copy of its own comes with the snapshot
	case m.Kind == vm.MountBlock:
		task := l.Progress.Task("make a disk of "+m.Source, 0)
		path := filepath.Join(string(l.vm.Dir()), paths.VolumeName(len(l.volumes)))
		err = rootfs.Volume(ctx, path, int64(m.SizeMiB)<<20, m.Source)
		task.Done(err)
		return d, err
	case m.Kind == vm.MountVolume:
		h, err = l.Volumes.Take(ctx, m)
	default:
		h, err = volume.Device(m.Source, m.ReadOnly)
	}
	if err != nil {
		return d, err
	}
	l.undo.add("let go of "+m.Source, func(context.Context) error { return h.Close() })
	fi, err := os.Stat(h.Path)
	if err != nil {
		return d, fmt.Errorf("attach %s: %w", m.Source, err)
	}
	d = volumeDisk{path: h.Path, readOnly: m.ReadOnly, device: fi.Mode()&os.ModeDevice != 0}
	if d.readOnly {
		if d.contents, err = snapshot.ContentsOf(d.path); err != nil {
			return d, fmt.Errorf("attach %s: %w", m.Source, err)
		}
	}
	return d, nil
}

// linkVolumes puts the disks of the mounts into the VM's directory.
func (in *instance) linkVolumes() error {
	for i, d := range in.volumes {
		if d.path == "" {
			continue
		}
		err := fresh(string(in.vm.Dir()), paths.VolumeName(i), func(path string) error { return os.Symlink(d.path, path) })
		if err != nil {
			return err
		}
	}
	return nil
}

// withVolumes appends the disks of the mounts, and sets what all disks have.
func (in *instance) withVolumes(disks []vmm.Disk) []vmm.Disk {
	for i, d := range in.volumes {
		disks = append(disks, vmm.Disk{
			ID: fmt.Sprintf("volume%d", i), Path: paths.VolumeName(i), ReadOnly: d.readOnly, Device: d.device,
		})
	}
	for i := range disks {
		disks[i].Rate = vmm.Rate{Bytes: in.Spec.DiskRate, Ops: in.Spec.DiskOps}
	}
	return disks
}

// shared is the guest's i-th disk if it is one of the mounts' that others read, too;
// else nothing.
func (in *instance) shared(i int) volumeDisk {
	if i -= agentapi.DiskVolumes; i < 0 || !in.volumes[i].readOnly {
		return volumeDisk{}
	}
	return in.volumes[i]
}

// keepsDisks reports whether something that the guest writes outlives its VM.
func (l *life) keepsDisks() bool {
	return slices.ContainsFunc(l.volumes, func(d volumeDisk) bool { return d.path != "" && !d.readOnly })
}
