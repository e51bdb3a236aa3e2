package agent

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/agentapi"
)

func TestEntryHasTheContainersSurroundings(t *testing.T) {
	g := newContainerGuest(t, pipeCarrier)
	req := sh(`echo "$OWN|$A|$TERM|$PWD"`)
	req.Env, req.WorkDir = []string{"A=b c\nd", "TERM=vt52"}, "/usr"
	if r := run(t, g.exec(t, req), nil); r.out != "own|b c\nd|vt52|/usr\n" || r.exit.Code != 0 {
		t.Errorf("%+v", r)
	}
}

func TestEntryThatCannotRun(t *testing.T) {
	g := newContainerGuest(t, pipeCarrier)
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"no-such-command"}, 127, "executable file `no-such-command` not found in $PATH"},
		{[]string{"/etc/passwd"}, 126, "open executable: Permission denied"},
	} {
		for _, how := range []agentapi.ExecRequest{{}, {TTY: true}, {Detach: true}, {Stdin: true}} {
			how.Args = tc.args
			r := run(t, g.exec(t, how), nil)
			if !r.exit.Failed || r.exit.Code != tc.code || !strings.HasPrefix(r.exit.Error, tc.want) || r.out+r.err != "" {
				t.Errorf("%+v: %+v", how, r)
			}
		}
	}
	if left, err := os.ReadDir(g.agent.container.engine.entries); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

func TestRuntimeExit(t *testing.T) {
	for msg, want := range map[string]int{
		"executable file `x` not found in $PATH: No such file or directory":     127,
		"exec: No such file or directory":                                       127,
		"exec: Exec format error":                                               126,
		"chdir `/x`: No such file or directory":                                 126,
		"error opening file `/run/crun/ab/status`: No such file or directory":   125,
		"the container `ab` is not running":                                     125,
		"something that has never been seen: Resource temporarily unavailable!": 126,
	} {
		e := runtimeExit(msg)
		if e.Code != want || !e.Failed || e.Error == "" {
			t.Errorf("%s: %+v, want %d", msg, e, want)
		}
	}
}

func TestDetachedCommands(t *testing.T) {
	eachPlace(t, func(t *testing.T, g *guest) {
		for _, tty := range []bool{false, true} {
			mark := filepath.Join(t.TempDir(), "mark")
			// More than a terminal holds, so that it ends only if it is read.
			req := sh("seq 1 100000; sleep 0.2; echo done >" + mark)
			req.Detach, req.TTY = true, tty
			start := time.Now()
			r := run(t, g.exec(t, req), nil)
			if r != (result{}) {
				t.Errorf("terminal %v: %+v", tty, r)
			}
			if _, err := os.Stat(mark); err == nil && time.Since(start) < 200*time.Millisecond {
				t.Error("it was waited for")
			}
			eventually(t, "the command's mark", func() bool {
				b, err := os.ReadFile(mark)
				return err == nil && string(b) == "done\n"
			})
		}
	})
}

func TestEntryNeedsARunningContainer(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	g.inside = true
	refused := func(when, want string, req agentapi.ExecRequest) {
		t.Helper()
		_, err := g.client.Exec(t.Context(), req)
		var e *agentapi.Error
		if !errors.As(err, &e) || !strings.Contains(e.Message, want) {
			t.Errorf("%s: got %v, want %q", when, err, want)
		}
	}
	refused("before", errNotRunning.Error(), sh("true"))
	g.plan(t, shell("read x"))
	g.start(t)
	for want, req := range map[string]agentapi.ExecRequest{
		"not absolute": {Args: []string{"true"}, WorkDir: "tmp"},
		"zero byte":    {Args: []string{"true", "a\x00b"}},
		"no-such-user": {Args: []string{"true"}, User: "no-such-user"},
	} {
		refused("while it runs", want, req)
	}
	if err := g.client.Signal(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the container", func() bool { return g.agent.state.status().Exit != nil })
	refused("after", errNotRunning.Error(), sh("true"))
}

const testPasswd = `root:x:0:0:root:/root:/bin/sh
# a comment: that: is: none

1000:x:77:78::/digits:
user:x:1000:1001:User:/home/user:/bin/sh
homeless:x:5:6
broken:x:many:6::/x:
`

const testGroup = `root:x:0:
wheel:x:10:root,user
video:x:44:user
user:x:1001:user
broken:x:y:user
`

func TestResolveUser(t *testing.T) {
	for spec, want := range map[string]identity{
		"":               {home: "/root", groups: []uint32{10}},
		"0":              {home: "/root", groups: []uint32{10}},
		"user":           {uid: 1000, gid: 1001, home: "/home/user", groups: []uint32{10, 44, 1001}},
		"user:video":     {uid: 1000, gid: 44, home: "/home/user"},
		"user:7":         {uid: 1000, gid: 7, home: "/home/user"},
		"1000":           {uid: 77, gid: 78, home: "/digits"}, // a name of digits
		"4321":           {uid: 4321, home: "/"},
		"4321:wheel":     {uid: 4321, gid: 10, home: "/"},
		"homeless":       {uid: 5, gid: 6, home: "/"},
		":video":         {gid: 44, home: "/root"},
		"2147483647:0":   {uid: 2147483647, home: "/"},
		"homeless:":      {uid: 5, gid: 6, home: "/"},
		"root:root":      {home: "/root"},
		"user:000000001": {uid: 1000, gid: 1, home: "/home/user"},
	} {
		got, err := resolveUser(spec, testPasswd, testGroup)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(identity{})); err != nil || d != "" {
			t.Errorf("%q: %v\n%s", spec, err, d)
		}
	}
	for _, spec := range []string{"nobody", "broken", "-1", "user:nogroup", "4294967296", "user:-1"} {
		if got, err := resolveUser(spec, testPasswd, testGroup); err == nil {
			t.Errorf("%q: %+v, want an error", spec, got)
		}
	}
	if got, err := resolveUser("12", "", ""); err != nil || got.uid != 12 {
		t.Errorf("an image without accounts: %+v, %v", got, err)
	}
}

// entryJSON is the process that a request makes in a container whose root has
// the accounts above.
func entryJSON(t *testing.T, c agentapi.Container, req agentapi.ExecRequest) map[string]any {
	t.Helper()
	dir := t.TempDir()
	writeRuntimeState(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	// An absolute link leads to somewhere inside.
	if err := os.Symlink("/real", filepath.Join(dir, "etc", "passwd")); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"real": testPasswd, "etc/group": testGroup} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := openTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.close() }()
	b, err := entryProcess(filepath.Join(dir, "config.json"), root, c, req)
	if err != nil {
		t.Fatal(err)
	}
	var p map[string]any
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEntryProcess(t *testing.T) {
	type m = map[string]any
	own, all := []any{"CAP_KILL", "CAP_CHOWN"}, []any{}
	for _, c := range allCapabilities() {
		all = append(all, c)
	}
	env := []any{"PATH=" + guestPath, "TERM=xterm", "OWN=own"}
	user := m{"uid": 1000., "gid": 1001., "umask": 18., "additionalGids": []any{10., 44., 1001.}}
	root := m{"uid": 0., "gid": 0., "umask": 18., "additionalGids": []any{10.}}
	effective := []any{"CAP_KILL"}
	for name, tc := range map[string]struct {
		c    agentapi.Container
		req  agentapi.ExecRequest
		want m
	}{
		"root": {
			req: agentapi.ExecRequest{},
			want: m{
				"user": root, "env": append(slices.Clone(env), "HOME=/root"), "terminal": false, "cwd": "/",
				"capabilities": m{"bounding": own, "effective": own, "permitted": own},
			},
		},
		"privileged": {
			req: agentapi.ExecRequest{Privileged: true, WorkDir: "/w", TTY: true, Rows: 3, Cols: 4},
			want: m{
				"user": root, "env": append(slices.Clone(env), "HOME=/root"), "terminal": true, "cwd": "/w",
				"consoleSize":  m{"height": 3., "width": 4.},
				"capabilities": m{"bounding": all, "effective": all, "permitted": all},
			},
		},
		"another user": {
			req: agentapi.ExecRequest{User: "user", Env: []string{"TERM=vt52", "N=1"}},
			want: m{
				"user": user, "env": []any{"PATH=" + guestPath, "TERM=vt52", "OWN=own", "HOME=/home/user", "N=1"}, "terminal": false, "cwd": "/",
				"capabilities": m{"bounding": own},
			},
		},
		"the container's user, whose image sets HOME": {
			c: agentapi.Container{User: "user", Env: []string{"HOME=/h"}},
			want: m{
				"user": user, "env": env, "terminal": false, "cwd": "/",
				"capabilities": m{"bounding": own, "effective": effective, "permitted": effective, "inheritable": effective, "ambient": effective},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.req.Args = []string{"a", "b"}
			tc.want["args"], tc.want["noNewPrivileges"] = []any{"a", "b"}, true
			if d := cmp.Diff(tc.want, entryJSON(t, tc.c, tc.req)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTreeStaysInside(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "secret")
	inside := filepath.Join(dir, "root")
	if err := os.Mkdir(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"rel": "../secret", "abs": outside, "self": "self"} {
		if err := os.Symlink(target, filepath.Join(inside, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := openTree(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.close() }()
	for _, path := range []string{"rel", "abs", "../secret", "/../secret", "/rel"} {
		if b, err := root.read(path); err != nil || b != nil {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if b, err := root.read("self"); err == nil {
		t.Errorf("a loop of links: %q", b)
	}
	if b, err := root.read("."); err == nil {
		t.Errorf("a directory: %q", b)
	}
}
