package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// vmID is what a VM's id looks like.
var vmID = regexp.MustCompile(`\b[0-9a-f]{12}\b`)

// snapshotHost lists what VMs could leave on the host. Others may run VMs here
// meanwhile: what is shared is listed if it names a VM of these tests, the rest
// if it lies in their directories.
func snapshotHost() map[string]bool {
	found := map[string]bool{}
	for _, pid := range ourProcesses() {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		found[fmt.Sprintf("process %d: %s", pid, exe)] = true
		for _, kind := range []string{"mnt", "net", "user", "pid"} {
			if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
				found["namespace "+ns] = true
			}
		}
	}
	addInterfaces(found)
	addLines(found, "mount", "/proc/self/mounts")
	addLines(found, "socket", "/proc/net/unix")
	rules, _ := exec.Command("nft", "list", "ruleset").Output() // nothing, unless root asks
	addNaming(found, "nft rule", string(rules))
	for _, depth := range []string{"", "*/", "*/*/", "*/*/*/", "*/*/*/*/", "*/*/*/*/*/"} {
		groups, _ := filepath.Glob("/sys/fs/cgroup/" + depth + "fcvm-*")
		addNaming(found, "control group", strings.Join(groups, "\n"))
	}
	addFiles(found, env.data)
	addFiles(found, env.runtime)
	return found
}

// ourProcesses are those that fcvm, or a test of it, has started: they have the
// tests' runtime directory in their environment, or work in their data
// directory.
func ourProcesses() []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		environ, err := os.ReadFile(dir + "/environ")
		if err != nil || pid == os.Getpid() {
			continue
		}
		cwd, _ := os.Readlink(dir + "/cwd")
		if bytes.Contains(environ, []byte("FCVM_RUNTIME_DIR="+env.runtime+"\x00")) || strings.HasPrefix(cwd, env.data+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// addInterfaces lists taps and the like. A bridge goes with its last VM.
func addInterfaces(found map[string]bool) {
	links, _ := os.ReadDir("/sys/class/net")
	for _, l := range links {
		dir := filepath.Join("/sys/class/net", l.Name())
		if ports, err := os.ReadDir(dir + "/brif"); err == nil && len(ports) > 0 {
			continue // it may be somebody else's
		}
		alias, _ := os.ReadFile(dir + "/ifalias")
		if id := vmID.Find(alias); id != nil && !isOurs(string(id)) {
			continue
		}
		found["network interface "+l.Name()] = true
	}
}

// addLines lists the lines of a file that have to do with the tests.
func addLines(found map[string]bool, what, path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if what == "socket" { // its name: the rest changes with its use
			fields := strings.Fields(line)
			line = fields[len(fields)-1]
		}
		if strings.Contains(line, env.data) || strings.Contains(line, env.runtime) {
			found[what+" "+line] = true
		} else {
			addNaming(found, what, line)
		}
	}
}

// addNaming lists the lines that name a VM of these tests.
func addNaming(found map[string]bool, what, text string) {
	for line := range strings.Lines(text) {
		if id := vmID.FindString(line); id != "" && isOurs(id) {
			found[what+" "+strings.TrimSpace(line)] = true
		}
	}
}

// isOurs reports whether a VM is, or was, one of the tests' data directory.
func isOurs(id string) bool {
	events, _ := os.ReadFile(filepath.Join(env.data, "events.jsonl"))
	return bytes.Contains(events, []byte(id))
}

// addFiles lists what lies in a directory, but for what is kept for the next
// run: images, guests to start from, and what setup has installed. What is only half
// there is not.
func addFiles(found map[string]bool, root string) {
	kept := []string{"images", "roots", "kernels", "scratch", "bin", "snapshots"}
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(root, path)
		parts := strings.Split(name, "/")
		if err != nil || len(parts) < 2 || name == "images/work" {
			return nil // gone meanwhile, or always there
		}
		half := strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(name, "images/work/")
		if half || !slices.Contains(kept, parts[0]) {
			found["file "+path] = true
		}
		return nil
	})
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		if !e.IsDir() && !slices.Contains([]string{"lock", "use.lock", "setup.lock", "events.jsonl", "events.jsonl.lock", "versions.json"}, e.Name()) {
			found["file "+filepath.Join(root, e.Name())] = true
		}
	}
}

// leftovers is what is there now and was not there before. What is on its way
// out gets a moment.
func leftovers(before map[string]bool) []string {
	var left []string
	for range 50 {
		left = nil
		for what := range snapshotHost() {
			if !before[what] {
				left = append(left, what)
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	slices.Sort(left)
	return left
}

// descriptors counts the open files of a process.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
