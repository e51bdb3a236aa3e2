package rootfs

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// node4 is what a disk has under one name.
type node4 struct {
	typ      string // in debugfs's words
	mode     int
	uid, gid int
	links    int // of a file; 0 in a wanted node is 1
	content  string
	size     int64
	dev      string
	epoch    bool // its time is the start of 1970, not testTime
}

type tree4 map[string]node4

// tool finds a program of e2fsprogs, which is not on an ordinary user's PATH.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if full, err := exec.LookPath(p); err == nil {
			return full
		}
	}
	t.Skipf("%s (package e2fsprogs) is not installed", name)
	return ""
}

// fsck has e2fsck find nothing to complain of.
func fsck(t *testing.T, disk string) {
	t.Helper()
	out, err := exec.Command(tool(t, "e2fsck"), "-fn", disk).CombinedOutput()
	if err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}

// debugfsAll runs commands and returns each one's output.
func debugfsAll(t *testing.T, disk string, commands []string) []string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool(t, "debugfs"), "-f", script, disk)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C", "DEBUGFS_PAGER=__none__")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("debugfs: %v", err)
	}
	var all []string
	for i, part := range strings.Split("\n"+string(out), "\ndebugfs: ")[1:] {
		answer, ok := strings.CutPrefix(part, commands[i])
		if !ok {
			t.Fatalf("debugfs answered %q to %q", part, commands[i])
		}
		all = append(all, answer)
	}
	return all
}

// readTree reads a disk's tree below a directory as debugfs sees it.
func readTree(t *testing.T, disk, root string) tree4 {
	t.Helper()
	names := map[string]string{} // path: inode
	queue := []string{""}
	names[""] = inodeOf(t, disk, root)
	for len(queue) > 0 {
		var commands []string
		for _, d := range queue {
			commands = append(commands, "ls -p <"+names[d]+">")
		}
		var next []string
		for i, out := range debugfsAll(t, disk, commands) {
			for _, line := range strings.Split(out, "\n") {
				// /INODE/MODE/UID/GID/NAME/SIZE/
				f := strings.Split(line, "/")
				if len(f) != 8 || f[1] == "0" || f[5] == "." || f[5] == ".." || root == "" && f[5] == "lost+found" {
					continue
				}
				p := path.Join(queue[i], f[5])
				names[p] = f[1]
				if strings.HasPrefix(f[2], "04") {
					next = append(next, p)
				}
			}
		}
		queue = next
	}
	paths := slices.Sorted(maps.Keys(names))
	dump := t.TempDir()
	var commands []string
	for _, p := range paths {
		commands = append(commands, "stat <"+names[p]+">")
	}
	out := tree4{}
	stats := debugfsAll(t, disk, commands)
	commands = nil
	for i, p := range paths {
		n := parseStat(t, stats[i])
		out[p] = n
		if n.typ == "regular" && n.size < 1<<20 || n.typ == "symlink" && n.size >= 60 {
			commands = append(commands, fmt.Sprintf("dump <%s> %s/%s", names[p], dump, names[p]))
		}
	}
	debugfsAll(t, disk, commands)
	for p, ino := range names {
		n := out[p]
		if b, err := os.ReadFile(filepath.Join(dump, ino)); err == nil {
			n.content = string(bytes.TrimRight(b, "\x00"))
		}
		out[p] = n
	}
	return out
}

func inodeOf(t *testing.T, disk, name string) string {
	t.Helper()
	out := debugfsAll(t, disk, []string{"stat /" + name})[0]
	m := regexp.MustCompile(`Inode: (\d+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no inode of /%s: %s", name, out)
	}
	return m[1]
}

var statFields = regexp.MustCompile(`(?s)Type: (.+?) +Mode: +(\d+).*?User: +(\d+) +Group: +(\d+).*?Size: (\d+).*?Links: (\d+).*?mtime: (\w+):\S+ -- [^\n]*`)

func parseStat(t *testing.T, out string) node4 {
	t.Helper()
	m := statFields.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("cannot read debugfs's stat: %s", out)
	}
	number := func(s string, base int) int {
		v, err := strconv.ParseInt(s, base, 64)
		if err != nil {
			t.Fatal(err)
		}
		return int(v)
	}
	n := node4{typ: m[1], mode: number(m[2], 8), uid: number(m[3], 10), gid: number(m[4], 10)}
	n.size = int64(number(m[5], 10))
	if n.typ != "directory" {
		n.links = number(m[6], 10)
	}
	switch mtime := number(strings.TrimPrefix(m[7], "0x"), 16); int64(mtime) {
	case 0:
		n.epoch = true
	case testTime.Unix():
	default:
		t.Errorf("mtime %d in %s", mtime, out)
	}
	if m := regexp.MustCompile(`Fast link dest: "(.*)"`).FindStringSubmatch(out); m != nil {
		n.content = m[1]
	}
	if m := regexp.MustCompile(`Device major/minor number: 0*(\d+):0*(\d+)`).FindStringSubmatch(out); m != nil {
		n.dev = m[1] + ":" + m[2]
	}
	return n
}

func compareTrees(t *testing.T, want, got tree4) {
	t.Helper()
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			t.Errorf("%q is missing", name)
			continue
		}
		if w.links == 0 && w.typ != "directory" {
			w.links = 1
		}
		if w.typ == "regular" || w.typ == "symlink" {
			w.size = int64(len(w.content))
		} else {
			g.size = 0
		}
		if fmt.Sprint(w) != fmt.Sprint(g) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", name, g, w)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q is not in the image", name)
		}
	}
}
