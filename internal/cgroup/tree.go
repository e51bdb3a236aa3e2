package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cpuPeriod is the kernel's default, microseconds.
const cpuPeriod = 100_000

// controllers are those that limits need.
var controllers = []string{"memory", "cpu", "io"} //nolint:gochecknoglobals // a constant

// host is where the kernel and systemd show what they have. Tests have their own.
type host struct {
	proc string // /proc
	run  string // /run
	uid  int
	env  func(string) string
}

func hostFS() host { return host{proc: "/proc", run: "/run", uid: os.Geteuid(), env: os.Getenv} }

// tree is the part of the hierarchy of cgroup v2 that this process can see.
type tree struct {
	root string // where it is mounted
	own  string // the directory of this process's group
}

// tree finds the hierarchy.
func (h host) tree() (tree, error) {
	own, err := h.groupOf(os.Getpid())
	if err != nil {
		return tree{}, err
	}
	root, err := h.mount()
	if err != nil {
		return tree{}, err
	}
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return tree{}, fmt.Errorf("%w: %w", ErrNone, err)
	}
	if !slices.Contains(strings.Fields(string(b)), "memory") {
		return tree{}, fmt.Errorf("%w: this host's memory controller is one of cgroup v1: boot it with systemd.unified_cgroup_hierarchy=1", ErrNone)
	}
	if strings.HasPrefix(own, "/..") {
		return tree{}, fmt.Errorf("%w: this process's own, %s, is out of sight: mount the host's whole /sys/fs/cgroup", ErrNone, own)
	}
	return tree{root: root, own: filepath.Join(root, own)}, nil
}

// groupOf returns a process's group of cgroup v2, as in cgroups(7):
// hierarchy 0, no controllers, a path.
func (h host) groupOf(pid int) (string, error) {
	path := filepath.Join(h.proc, strconv.Itoa(pid), "cgroup")
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNone, err)
	}
	for line := range strings.Lines(string(b)) {
		if own, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); found {
			return own, nil
		}
	}
	return "", fmt.Errorf("%w: this host has cgroup v1 only", ErrNone)
}

// mount finds where the hierarchy is mounted, from its root on (proc(5),
// mountinfo).
func (h host) mount() (string, error) {
	b, err := os.ReadFile(filepath.Join(h.proc, "self", "mountinfo"))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNone, err)
	}
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		before, after, found := strings.Cut(s.Text(), " - ")
		f := strings.Fields(before)
		if found && len(f) > 4 && strings.HasPrefix(after, "cgroup2 ") && f[3] == "/" {
			return f[4], nil
		}
	}
	return "", fmt.Errorf("%w: cgroup v2 is not mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup", ErrNone)
}

// create makes a group below the nearest ancestor that takes one.
func (t tree) create(id string, l Limits, claim func(dir string) error) (*Group, error) {
	var refused []string
	for dir := t.own; ; dir = filepath.Dir(dir) {
		have, err := enable(dir)
		if err == nil {
			dir = filepath.Join(dir, prefix+id)
			if claim != nil {
				if err := claim(dir); err != nil {
					return nil, err
				}
			}
			return makeGroup(dir, have, l)
		}
		refused = append(refused, err.Error())
		if dir == t.root || len(dir) <= len(t.root) {
			// The nearest says most: those above are mostly others' own.
			return nil, fmt.Errorf("%w: %s; give your user a delegated one (systemd: Delegate=yes)", ErrNone, refused[0])
		}
	}
}

// enable makes controllers available to the groups below dir, and returns
// those that are.
func enable(dir string) ([]string, error) {
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		if err := unix.Access(filepath.Join(dir, name), unix.W_OK); err != nil {
			return nil, fmt.Errorf("%s is not this user's: %w", dir, err)
		}
	}
	there, err := words(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	control := filepath.Join(dir, "cgroup.subtree_control")
	on, err := words(control)
	if err != nil {
		return nil, err
	}
	var have []string
	for _, c := range controllers {
		if !slices.Contains(there, c) {
			continue
		}
		if !slices.Contains(on, c) {
			// EBUSY: it has processes of its own, which may not be beside groups.
			if err := write(control, "+"+c); errors.Is(err, unix.EBUSY) {
				return nil, fmt.Errorf("%s has processes of its own, and so no limits below it", dir)
			} else if err != nil {
				return nil, err
			}
		}
		have = append(have, c)
	}
	if !slices.Contains(have, "memory") {
		return nil, fmt.Errorf("%s was given no memory controller", dir)
	}
	return have, nil
}

// makeGroup makes the directory and sets what limits it can.
func makeGroup(dir string, have []string, l Limits) (*Group, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	g := &Group{by: ByKernel, name: filepath.Base(dir), dir: dir}
	fail := func(err error) (*Group, error) {
		return nil, errors.Join(err, os.Remove(dir))
	}
	for _, s := range l.settings() {
		controller, _, _ := strings.Cut(s.file, ".")
		if !slices.Contains(have, controller) {
			g.missing = append(g.missing, s.what+" (no "+controller+" controller)")
			continue
		}
		err := write(filepath.Join(dir, s.file), s.value)
		if errors.Is(err, fs.ErrNotExist) && !s.must {
			g.missing = append(g.missing, s.what+" (not in this kernel)")
			continue
		}
		if err != nil {
			return fail(fmt.Errorf("limit %s: %w", s.what, err))
		}
	}
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fail(err)
	}
	g.file = f
	return g, nil
}

type setting struct {
	file, value string
	what        string // for people
	must        bool   // every kernel that has the controller has it
}

// settings are the files to be written, in their order.
func (l Limits) settings() []setting {
	var s []setting
	if l.Memory > 0 {
		s = append(s,
			setting{"memory.max", strconv.FormatUint(l.Memory, 10), "memory", true},
			// A VMM of which the kernel kills a part is none.
			setting{"memory.oom.group", "1", "the end of all at once", false})
	}
	if l.CPUs > 0 {
		s = append(s, setting{"cpu.max", fmt.Sprintf("%d %d", l.CPUs*cpuPeriod, cpuPeriod), "CPU time", true})
	}
	if l.IOWeight > 0 {
		s = append(s, setting{"io.weight", fmt.Sprintf("default %d", l.IOWeight), "I/O weight", false})
	}
	if l.IORate > 0 {
		s = append(s, setting{"io.max", fmt.Sprintf("%s rbps=%d wbps=%d", l.Device.Number, l.IORate, l.IORate), LimitIORate, false})
	}
	return s
}

func words(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b)), nil
}

// write writes to a file of the kernel's, in one call.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
