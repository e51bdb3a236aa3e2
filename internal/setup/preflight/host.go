package preflight

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What a host should have. A guest takes 512 MiB by default, the kernel and
// the guest root together half a GiB of disk.
const (
	mib          = 1 << 20
	failMemory   = 256 * mib
	warnMemory   = 1024 * mib
	failDisk     = 256 * mib
	warnDisk     = 2048 * mib
	minorFor5    = 10 // Firecracker supports hosts from Linux 5.10 on
	majorForHost = 5
)

func checkCPU(arch string) Check {
	c := Check{Name: "cpu", Status: OK}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		b = nil
	}
	model, flag := parseCPU(b)
	c.Detail = fmt.Sprintf("%s, %s", arch, orElse(model, "model unknown"))
	switch {
	case arch != "amd64" && arch != "arm64":
		c.Status = Fail
		c.Remedy = "use a host with an x86_64 or arm64 CPU"
	case arch == "amd64" && flag == "":
		c.Detail += ", no hardware virtualization (neither vmx nor svm)"
	case flag != "":
		c.Detail += ", " + flag
	}
	return c
}

// parseCPU finds the first CPU's model and its virtualization flag in
// /proc/cpuinfo (proc(5)).
func parseCPU(cpuinfo []byte) (model, flag string) {
	for line := range bytes.Lines(cpuinfo) {
		key, value, ok := strings.Cut(string(line), ":")
		if !ok {
			continue
		}
		switch strings.TrimSpace(key) {
		case "model name":
			if model == "" {
				model = strings.TrimSpace(value)
			}
		case "flags":
			for _, f := range strings.Fields(value) {
				if f == "vmx" || f == "svm" {
					return model, f
				}
			}
			return model, ""
		}
	}
	return model, ""
}

func checkKernel() Check {
	c := Check{Name: "kernel", Status: OK}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		c.Status, c.Detail, c.Remedy = Warn, fmt.Sprintf("uname: %v", err), "run fcvm on Linux 5.10 or later"
		return c
	}
	release := unix.ByteSliceToString(uts.Release[:])
	c.Detail = "Linux " + release
	major, minor, ok := parseRelease(release)
	if !ok || major < majorForHost || (major == majorForHost && minor < minorFor5) {
		c.Status, c.Remedy = Warn, "update the host's kernel: VMMs are tested on 5.10 and later"
	}
	return c
}

// parseRelease reads "6.1.0-56-cloud-amd64" as 6, 1.
func parseRelease(release string) (major, minor int, ok bool) {
	a, rest, _ := strings.Cut(release, ".")
	b := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		b = rest[:i]
	}
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	return major, minor, err1 == nil && err2 == nil
}

func checkMemory() Check {
	c := Check{Name: "memory", Status: OK}
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		c.Status, c.Detail, c.Remedy = Warn, err.Error(), "mount /proc"
		return c
	}
	available, err := parseMemAvailable(b)
	if err != nil {
		c.Status, c.Detail, c.Remedy = Warn, err.Error(), "mount the host's own /proc"
		return c
	}
	c.Detail = fmt.Sprintf("%d MiB available", available/mib)
	switch {
	case available < failMemory:
		c.Status, c.Remedy = Fail, fmt.Sprintf("free memory: a VM needs at least %d MiB", failMemory/mib)
	case available < warnMemory:
		c.Status, c.Remedy = Warn, "give VMs less memory (--mem) or free some: the default VM with its VMM may not fit"
	}
	return c
}

func parseMemAvailable(meminfo []byte) (int64, error) {
	for line := range bytes.Lines(meminfo) {
		f := strings.Fields(string(line))
		if len(f) == 3 && f[0] == "MemAvailable:" && f[2] == "kB" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil || kib < 0 || kib > 1<<50 {
				return 0, fmt.Errorf("parse /proc/meminfo: MemAvailable is %q", f[1])
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("parse /proc/meminfo: no MemAvailable")
}

// checkDisk looks at the data directory or, before it exists, at where it
// will be made.
func checkDisk(dataDir string) Check {
	c := Check{Name: "disk", Status: OK}
	dir, err := existing(dataDir)
	if err == nil {
		err = unix.Access(dir, unix.W_OK|unix.X_OK)
	}
	if err != nil {
		c.Status, c.Detail = Fail, fmt.Sprintf("data directory %s cannot be written to (%s: %v)", dataDir, dir, err)
		c.Remedy = "choose another with --data-dir or FCVM_DATA_DIR"
		return c
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		c.Status, c.Detail, c.Remedy = Warn, fmt.Sprintf("statfs %s: %v", dir, err), "choose another with --data-dir or FCVM_DATA_DIR"
		return c
	}
	free := int64(st.Bavail) * st.Bsize
	c.Detail = fmt.Sprintf("%d MiB free for %s", free/mib, dataDir)
	switch {
	case free < failDisk:
		c.Status = Fail
		c.Remedy = "free some space or choose another place with --data-dir or FCVM_DATA_DIR"
	case free < warnDisk:
		c.Status = Warn
		c.Remedy = fmt.Sprintf("free some space (%d MiB is comfortable) or choose another place with --data-dir or FCVM_DATA_DIR", warnDisk/mib)
	}
	return c
}

// existing returns the path's nearest ancestor that exists.
func existing(path string) (string, error) {
	for {
		st, err := os.Stat(path)
		if err == nil && !st.IsDir() {
			return path, unix.ENOTDIR
		}
		parent := filepath.Dir(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || parent == path {
			return path, err
		}
		path = parent
	}
}

func checkCgroup(uid int) Check {
	const root = "/sys/fs/cgroup"
	c := Check{Name: "cgroup", Status: OK}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || int64(st.Type) != unix.CGROUP2_SUPER_MAGIC { //nolint:unconvert // as above
		c.Status, c.Detail = Warn, "version 1: VMs run, but without limits of the host on them"
		c.Remedy = "boot the host with systemd.unified_cgroup_hierarchy=1"
		return c
	}
	c.Detail = "version 2"
	if uid == 0 {
		return c
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		b = nil
	}
	own := filepath.Join(root, parseCgroup(b))
	if unix.Access(filepath.Dir(own), unix.W_OK) != nil && unix.Access(own, unix.W_OK) != nil {
		c.Status, c.Detail = Warn, "version 2, not delegated to this user: VMs run, but without limits of the host on them"
		c.Remedy = "run fcvm in a session of systemd: systemd-run --user --scope -p Delegate=yes fcvm …"
		return c
	}
	c.Detail += ", delegated to this user"
	return c
}

// parseCgroup returns the process's path in the version 2 hierarchy
// (cgroups(7)), "/" where there is none.
func parseCgroup(selfCgroup []byte) string {
	s := bufio.NewScanner(bytes.NewReader(selfCgroup))
	for s.Scan() {
		if p, ok := strings.CutPrefix(s.Text(), "0::"); ok {
			return p
		}
	}
	return "/"
}
