// Package cgroup gives the processes of one VM a control group of their own
// (cgroup v2), with limits, and removes it again.
//
// Where systemd runs, it owns the tree, and is asked for a transient scope: the
// system's manager by root, the user's own by others. Where it does not run, or
// does not answer, the group is made below the nearest ancestor of this
// process's own group in which that may be done: one that this user may write
// to, because it is root or because the subtree was delegated to it, and that
// has no processes of its own.
//
// https://docs.kernel.org/admin-guide/cgroup-v2.html
// https://systemd.io/CGROUP_DELEGATION/
//
// The life of a Group: Open; start a process with File as the group that it is
// born into, where there is one; Adopt it; Close kills what is left in the
// group and removes it. Of a group whose owner died, Remove does that.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNone: this host, or this user, has no control groups to make. The message
// says why.
var ErrNone = errors.New("no control group")

// ErrForeign: a directory is not the control group of that VM.
var ErrForeign = errors.New("not a control group of this VM")

// The two makers of groups.
const (
	BySystemd = "systemd"
	ByKernel  = "cgroupfs"
)

// prefix of every group's name; an id follows.
const prefix = "fcvm-"

// LimitIORate is how Missing names IORate.
const LimitIORate = "I/O rate"

// Limits of one group. What is zero has no limit.
type Limits struct {
	Memory   uint64 // bytes, of all that the group's processes hold and the kernel holds for them
	CPUs     int    // processors' worth of time
	IOWeight int    // share of a busy disk, 1 to 10000; the kernel gives others 100
	IORate   uint64 // bytes a second to Device, and as many from it
	Device   Device // of IORate
}

// Device is a disk of the host.
type Device struct {
	Path   string // a file on it, or itself
	Number string // MAJOR:MINOR
}

// Group is one VM's control group.
type Group struct {
	by      string
	name    string
	dir     string   // absolute; empty until systemd has made it
	missing []string // limits that this host does not have
	file    *os.File // of dir, while the group takes processes by clone3
	scope   *scope   // nil: not by systemd
}

// Open makes a group for a VM, or prepares to have it made by systemd, which
// makes none without a process, and removes it when it is empty. The error
// wraps ErrNone, and says why, where there is none to be had. claim is told
// where the group will be just before it is made, so that somebody else can
// remove it; nil: nobody is told.
func Open(ctx context.Context, id string, l Limits, claim func(dir string) error) (*Group, error) {
	return hostFS().open(ctx, id, l, claim)
}

func (h host) open(ctx context.Context, id string, l Limits, claim func(dir string) error) (*Group, error) {
	t, err := h.tree()
	if err != nil {
		return nil, err
	}
	var why error
	if h.systemdRuns() {
		var s *scope
		if s, why = openScope(ctx, h, id, l); why == nil {
			return &Group{by: BySystemd, name: s.name, scope: s}, nil
		}
	}
	g, err := t.create(id, l, claim)
	if err != nil {
		return nil, errors.Join(err, why)
	}
	return g, nil
}

// By is who made the group: BySystemd or ByKernel.
func (g *Group) By() string { return g.by }

// Dir is the group's directory, absolute; known from Adopt on.
func (g *Group) Dir() string { return g.dir }

// Missing names the limits that could not be set, with why.
func (g *Group) Missing() []string { return slices.Clone(g.missing) }

// File is the group's directory for clone3(2) with CLONE_INTO_CGROUP; nil:
// start the process where it is, and Adopt it.
func (g *Group) File() *os.File { return g.file }

// Adopt puts a process that has just started into the group, if it was not
// born there.
func (g *Group) Adopt(ctx context.Context, pid int) error {
	if g.scope != nil {
		return g.adoptByScope(ctx, pid)
	}
	own, err := hostFS().groupOf(pid)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil // it has ended already, and shows so elsewhere
	}
	if err != nil {
		return err
	}
	if filepath.Base(own) != g.name {
		return fmt.Errorf("put process %d into its control group: it is in %s", pid, own)
	}
	return nil
}

// OutOfMemory reports whether the kernel has killed a process of the group
// because of the group's limit.
func (g *Group) OutOfMemory() bool {
	events, err := words(filepath.Join(g.dir, "memory.events"))
	if err != nil {
		return false
	}
	i := slices.Index(events, "oom_kill")
	return i >= 0 && i+1 < len(events) && events[i+1] != "0"
}

// Close kills what is in the group and removes it.
func (g *Group) Close(ctx context.Context) error {
	var err error
	if g.file != nil {
		err = g.file.Close()
		g.file = nil
	}
	if g.scope != nil {
		g.scope.close()
	}
	if g.dir == "" {
		return err
	}
	return errors.Join(err, remove(ctx, g.dir))
}

// Remove kills what is left in the group of a VM and removes it. dir is what
// Group.Dir was; one that is gone already is no error, one that cannot be that
// VM's is ErrForeign.
func Remove(ctx context.Context, dir, id string) error {
	base := filepath.Base(dir)
	if !filepath.IsAbs(dir) || base != prefix+id && base != prefix+id+scopeSuffix {
		return fmt.Errorf("remove control group %q of VM %s: %w", dir, id, ErrForeign)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove control group %s: %w", dir, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("remove control group %q of VM %s: %w", dir, id, ErrForeign)
	}
	return remove(ctx, dir)
}

// String is for people: who made it, and where it is.
func (g *Group) String() string {
	s := g.dir + " (" + g.by + ")"
	if len(g.missing) > 0 {
		s += ", without " + strings.Join(g.missing, ", ")
	}
	return s
}
