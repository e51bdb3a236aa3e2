package preflight

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// tool is a program that setup runs; any one of Programs will do.
type tool struct {
	name     string
	programs []string
	pkg      string // the Debian package
	purpose  string
	rootOnly []string // programs that will do for root
	users    bool     // only ordinary users need it
	always   bool     // no VM runs without it
}

// forRootfs is the purpose of what RootfsTools looks at.
const forRootfs = "fcvm setup rootfs"

var tools = []tool{ //nolint:gochecknoglobals // a table
	{name: "mmdebstrap", programs: []string{"mmdebstrap"}, rootOnly: []string{"debootstrap"}, pkg: "mmdebstrap", purpose: forRootfs},
	{name: "apt", programs: []string{"apt-get"}, pkg: "apt", purpose: "fcvm setup kernel"},
	{name: "dpkg", programs: []string{"dpkg-deb"}, pkg: "dpkg", purpose: "fcvm setup kernel"},
	{name: "mkfs.ext4", programs: []string{"mkfs.ext4"}, pkg: "e2fsprogs", purpose: "fcvm run", always: true},
	{name: "newuidmap", programs: []string{"newuidmap"}, pkg: "uidmap", purpose: forRootfs, users: true},
}

// systemDirs are searched besides $PATH: an ordinary user's lacks them.
var systemDirs = []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} //nolint:gochecknoglobals // a table

func checkTools(uid int) []Check {
	var checks []Check
	for _, t := range tools {
		if t.users && uid == 0 {
			continue
		}
		checks = append(checks, t.check(uid, lookPath))
	}
	if uid != 0 {
		checks = append(checks, checkSubIDs(uid))
	}
	return checks
}

// RootfsTools makes the checks that tell whether this user can build a guest
// root of a distribution's packages.
func RootfsTools(ctx context.Context, uid int) []Check {
	var checks []Check
	for _, t := range tools {
		if t.purpose == forRootfs && (!t.users || uid != 0) {
			checks = append(checks, t.check(uid, lookPath))
		}
	}
	if uid != 0 {
		checks = append(checks, checkSubIDs(uid), checkUserNamespaces(ctx, uid))
	}
	return checks
}

func (t tool) check(uid int, lookPath func(string) string) Check {
	programs := t.programs
	if uid == 0 {
		programs = slices.Concat(programs, t.rootOnly)
	}
	for _, p := range programs {
		if path := lookPath(p); path != "" {
			return Check{Name: t.name, Status: OK, Detail: path}
		}
	}
	status := Warn
	if t.always {
		status = Fail
	}
	return Check{
		Name: t.name, Status: status,
		Detail: strings.Join(programs, " or ") + " is missing: " + t.purpose + " needs it",
		Remedy: "sudo apt-get install " + t.pkg,
	}
}

func lookPath(program string) string {
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	for _, d := range systemDirs {
		if p, err := exec.LookPath(d + "/" + program); err == nil {
			return p
		}
	}
	return ""
}

// checkSubIDs looks for the ranges of user and group ids that let an ordinary
// user build a guest root whose files have many owners (subuid(5)).
func checkSubIDs(uid int) Check {
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	c := Check{Name: "subordinate ids", Status: OK, Detail: "assigned to " + name}
	for _, path := range []string{"/etc/subuid", "/etc/subgid"} {
		b, err := os.ReadFile(path)
		if err != nil {
			b = nil // no file assigns nothing
		}
		if !hasSubIDs(b, name, uid) {
			c.Status, c.Detail = Warn, path+" assigns none to "+name+": fcvm setup rootfs needs them as an ordinary user"
			c.Remedy = "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + name
			return c
		}
	}
	return c
}

// minSubIDs is how many ids Debian's own files need.
const minSubIDs = 65536

func hasSubIDs(file []byte, name string, uid int) bool {
	for line := range bytes.Lines(file) {
		f := strings.Split(strings.TrimSpace(string(line)), ":")
		if len(f) != 3 || (f[0] != name && f[0] != strconv.Itoa(uid)) {
			continue
		}
		if n, err := strconv.ParseUint(f[2], 10, 32); err == nil && n >= minSubIDs {
			return true
		}
	}
	return false
}
