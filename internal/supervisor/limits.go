package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/cgroup"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
)

// errNoIOMax: the one limit that was asked for by name cannot be had.
var errNoIOMax = errors.New("--io-max cannot be kept to on this host")

const (
	// A VMM's own threads (disks, network) come on top of the virtual CPUs.
	cpuHeadroom = 1

	// What the kernel keeps for a guest's memory grows with it: page tables
	// of the VMM and of the guest take 1/512 each, at most.
	memoryShare = 64

	// A VM's share of a busy disk is as its share of the processors: one with
	// two virtual CPUs counts as any other group (100) does.
	ioWeightPerCPU = 50
)

// limits are what this VM's processes are held to.
func (in *instance) limits() (cgroup.Limits, error) {
	s := &in.Spec
	mib := s.MemoryMiB + s.MemoryMiB/memoryShare + in.driver.Capabilities().MemoryOverheadMiB
	l := cgroup.Limits{
		Memory: uint64(mib) << 20, CPUs: s.CPUs + cpuHeadroom,
		IOWeight: ioWeightPerCPU * s.CPUs, IORate: s.IORate,
	}
	if in.diskInMemory() {
		l.Memory = 0
	}
	if s.IORate == 0 {
		return l, nil
	}
	d, err := cgroup.DeviceOf(string(in.vm.Dir()))
	if err != nil {
		return l, fmt.Errorf("%w: %w", errNoIOMax, err)
	}
	l.Device = d
	return l, nil
}

// diskInMemory reports whether what the VM writes to its disk is memory of the
// host (tmpfs). The kernel counts that as the VMM's, and would end the VM for
// what its disk holds.
func (in *instance) diskInMemory() bool {
	var st unix.Statfs_t
	err := unix.Statfs(string(in.vm.Dir()), &st)
	return err == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC)
}

// openGroup makes the VM's control group. A host that has none to give runs
// the VM without, and the record says so.
func (in *instance) openGroup(ctx context.Context) error {
	l, err := in.limits()
	if err != nil {
		return err
	}
	in.group, err = cgroup.Open(ctx, in.vm.Record().ID, l, in.linkGroup)
	if err != nil {
		return in.unlimited(err)
	}
	in.undo.add("remove the control group", in.closeGroup)
	return nil
}

// linkGroup lets the next command remove a group that outlives this process.
func (in *instance) linkGroup(dir string) error {
	return fresh(string(in.vm.Dir()), paths.CgroupName, func(path string) error { return os.Symlink(dir, path) })
}

func (in *instance) closeGroup(ctx context.Context) error {
	if err := in.group.Close(ctx); err != nil {
		return err
	}
	if err := os.Remove(in.vm.Dir().Cgroup()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unlimited writes down why there are no limits.
func (in *instance) unlimited(why error) error {
	if in.Spec.IORate != 0 {
		return fmt.Errorf("%w: %w", errNoIOMax, why)
	}
	text := strings.ReplaceAll(why.Error(), "\n", "; ")
	in.Verbose("no limits: " + text)
	return in.vm.Update(func(r *vm.Record) error {
		r.Resolved.Limits = vm.Limits{Note: text}
		return nil
	})
}

// limited starts processes in the VM's group.
type limited struct {
	*instance
	inner vmm.Launcher
}

// launcher starts the VMM where the network and the limits want it.
func (in *instance) launcher() vmm.Launcher {
	inner := in.net.Launcher()
	if in.group == nil {
		return inner
	}
	if inner == nil {
		inner = launch.Direct{}
	}
	return limited{in, inner}
}

// Launch implements vmm.Launcher.
func (l limited) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	c.Cgroup = l.group.File()
	p, err := l.inner.Launch(ctx, c)
	if err != nil {
		return nil, err
	}
	if err = l.group.Adopt(ctx, p.PID()); err == nil {
		err = l.recordGroup()
	} else if ctx.Err() == nil {
		err = l.unlimited(err)
	}
	if err != nil {
		_ = p.Signal(unix.SIGKILL)
		p.Wait()
		return nil, err
	}
	return p, nil
}

func (in *instance) recordGroup() error {
	l, err := in.limits()
	if err != nil {
		return err
	}
	missing := in.group.Missing()
	noRate := slices.ContainsFunc(missing, func(m string) bool { return strings.HasPrefix(m, cgroup.LimitIORate) })
	if l.IORate != 0 && noRate {
		return fmt.Errorf("%w: %s", errNoIOMax, strings.Join(missing, ", "))
	}
	if l.Memory == 0 {
		missing = append(missing, "memory (the data directory is a tmpfs, which counts as the VM's memory)")
	}
	in.Verbose(fmt.Sprintf("limits: %d MiB, %d CPUs, in %s", l.Memory>>20, l.CPUs, in.group))
	if err := in.linkGroup(in.group.Dir()); err != nil {
		return err
	}
	return in.vm.Update(func(r *vm.Record) error {
		r.Resolved.Limits = vm.Limits{
			By: in.group.By(), Cgroup: in.group.Dir(),
			Memory: l.Memory, CPUs: l.CPUs, IOWeight: l.IOWeight, IORate: l.IORate, Missing: missing,
		}
		return nil
	})
}

// explain adds to how a VMM ended what its group knows of it.
func (in *instance) explain(e vmm.Exit) vmm.Exit {
	if e.Signal == int(unix.SIGKILL) && in.group != nil && in.group.OutOfMemory() {
		e.Reason = fmt.Sprintf("the VMM needed more than its limit of %d MiB of memory", in.vm.Record().Resolved.Limits.Memory>>20)
	}
	return e
}
