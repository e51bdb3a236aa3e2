package preflight

import (
	"bytes"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// tool is a program that setup runs; any one of Programs will do.
type tool struct {
	name     string
	programs []string
	pkg      string // the Debian package
	purpose  string
	users    bool // only ordinary users need it
}

var tools = []tool{ //nolint:gochecknoglobals // a table
	{name: "debootstrap", programs: []string{"mmdebstrap", "debootstrap"}, pkg: "mmdebstrap", purpose: "fcvm setup rootfs"},
	{name: "apt", programs: []string{"apt-get"}, pkg: "apt", purpose: "fcvm setup kernel"},
	{name: "dpkg", programs: []string{"dpkg-deb"}, pkg: "dpkg", purpose: "fcvm setup kernel"},
	{name: "mkfs.ext4", programs: []string{"mkfs.ext4"}, pkg: "e2fsprogs", purpose: "scratch disks"},
	{name: "newuidmap", programs: []string{"newuidmap"}, pkg: "uidmap", purpose: "fcvm setup rootfs as an ordinary user", users: true},
}

// systemDirs are searched besides $PATH: an ordinary user's lacks them.
var systemDirs = []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} //nolint:gochecknoglobals // a table

func checkTools(uid int) []Check {
	var checks []Check
	for _, t := range tools {
		if t.users && uid == 0 {
			continue
		}
		checks = append(checks, t.check(lookPath))
	}
	if uid != 0 {
		checks = append(checks, checkSubIDs(uid))
	}
	return checks
}

func (t tool) check(lookPath func(string) string) Check {
	for _, p := range t.programs {
		if path := lookPath(p); path != "" {
			return Check{Name: t.name, Status: OK, Detail: path}
		}
	}
	return Check{
		Name: t.name, Status: Warn,
		Detail: strings.Join(t.programs, " or ") + " is missing: " + t.purpose + " needs it",
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
