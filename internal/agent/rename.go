package agent

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// machineIDs are where a machine's id may lie: machine-id(5), and where systemd
// keeps it while the root cannot be written.
var machineIDs = []string{"etc/machine-id", "run/machine-id", "var/lib/dbus/machine-id"}

var machineIDPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// renaming is a new identity for a machine, and the old names by which it is
// found in files.
type renaming struct {
	name      string   // hostname; empty: as it is
	old       []string // what it was
	machineID string   // empty: as it is
	hosts     []string // lines that hosts(5) is to have
	resolv    *string  // resolv.conf(5); nil: as it is
}

// was adds an old name.
func (r *renaming) was(name string) {
	if name != "" && name != "localhost" { // which every machine has
		r.old = append(r.old[:len(r.old):len(r.old)], name)
	}
}

// netFiles changes the files by which programs find names in a directory.
func (r *renaming) netFiles(dir *tree, prefix string) error {
	edits := map[string]func(string) string{"hosts": r.editHosts}
	if r.name != "" {
		edits["hostname"] = func(old string) string { return r.name + newline(old) }
	}
	if r.resolv != nil {
		edits["resolv.conf"] = func(string) string { return *r.resolv }
	}
	for name, edit := range edits {
		if err := dir.rewrite(prefix+name, edit); err != nil {
			return fmt.Errorf("change %s: %w", name, err)
		}
	}
	return nil
}

// newline is the end of a text: Podman's hostname has none.
func newline(text string) string {
	if strings.HasSuffix(text, "\n") {
		return "\n"
	}
	return ""
}

// editHosts gives the machine its new name wherever it had the old one, and
// puts the lines that are missing before the rest: the first one counts.
func (r *renaming) editHosts(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, line := range lines {
		if r.name != "" {
			lines[i] = renameHost(line, r.old, r.name)
		}
	}
	var missing strings.Builder
	for _, h := range r.hosts {
		if !slices.Contains(lines, h+"\n") {
			missing.WriteString(h + "\n")
		}
	}
	return missing.String() + strings.Join(lines, "")
}

// renameHost changes names in a line of hosts(5), and nothing else in it.
func renameHost(line string, old []string, name string) string {
	text, comment, hasComment := strings.Cut(line, "#")
	if hasComment {
		comment = "#" + comment
	}
	var b strings.Builder
	for n := 0; text != ""; n++ {
		word := len(text) - len(strings.TrimLeft(text, " \t\r\n"))
		b.WriteString(text[:word])
		text = text[word:]
		end := strings.IndexAny(text, " \t\r\n")
		if end < 0 {
			end = len(text)
		}
		if n > 0 && slices.Contains(old, text[:end]) { // the first word is the address
			b.WriteString(name)
		} else {
			b.WriteString(text[:end])
		}
		text = text[end:]
	}
	return b.String() + comment
}

// machineIDFiles changes the machine's id wherever there is one. That a root
// cannot be written is no error: what lies there is the image's, and was never
// this machine's own.
func (r *renaming) machineIDFiles(root *tree) error {
	if r.machineID == "" {
		return nil
	}
	for _, path := range machineIDs {
		err := root.rewrite(path, func(old string) string {
			if !machineIDPattern.MatchString(strings.TrimSpace(old)) {
				return old // systemd's "uninitialized", or none
			}
			return r.machineID + newline(old)
		})
		if err != nil && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("change the machine id: %w", err)
		}
	}
	return nil
}

// hostnameIn sets the hostname of a process's UTS namespace, and returns what
// it was.
func hostnameIn(pidfd int, name string) (old string, err error) {
	own, err := os.Open("/proc/thread-self/ns/uts")
	if err != nil {
		return "", fmt.Errorf("enter the container's UTS namespace: %w", err)
	}
	defer func() { _ = own.Close() }()
	runtime.LockOSThread()
	if err := unix.Setns(pidfd, unix.CLONE_NEWUTS); err != nil {
		runtime.UnlockOSThread()
		return "", fmt.Errorf("enter the container's UTS namespace: %w", err)
	}
	old, err = renameHere(name)
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWUTS); back != nil {
		// The thread stays locked, so that it ends with its goroutine.
		return old, errors.Join(err, fmt.Errorf("leave the container's UTS namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return old, err
}

// renameHere sets the hostname, unless the new one is empty, and returns what
// it was.
func renameHere(name string) (old string, err error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("read the hostname: %w", err)
	}
	old = unix.ByteSliceToString(uts.Nodename[:])
	if name == "" {
		return old, nil
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return old, fmt.Errorf("set hostname %q: %w", name, err)
	}
	return old, nil
}
