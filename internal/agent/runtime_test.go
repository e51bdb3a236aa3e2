package agent

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// runtimeID is the container's id.
const runtimeID = "c0ffee"

// runtimeConfig is as much of a container's configuration as is looked at.
const runtimeConfig = `{"ociVersion": "1.0.2", "process": {
	"user": {"uid": 0, "gid": 0, "umask": 18}, "args": ["first"], "cwd": "/", "noNewPrivileges": true,
	"env": ["PATH=` + guestPath + `", "TERM=xterm", "OWN=own"],
	"capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}
}}`

func writeRuntimeState(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(runtimeConfig), 0o600); err != nil {
		t.Fatal(err)
	}
}

// runtimeMain is an OCI runtime that enters no container: the test's own
// program, called as crun is. It takes no user, so that it needs no privilege.
func runtimeMain(args []string) int {
	log := strings.TrimPrefix(args[0], "--log=")
	f := flag.NewFlagSet("exec", flag.ExitOnError)
	process, pidFile := f.String("process", "", ""), f.String("pid-file", "", "")
	console, detach := f.String("console-socket", "", ""), f.Bool("detach", false, "")
	_ = f.Parse(args[2:])
	code, err := runtimeExec(*process, *pidFile, *console, *detach)
	if err == nil && f.Arg(0) != runtimeID {
		err = fmt.Errorf("error opening file `/run/crun/%s/status`: No such file or directory", f.Arg(0))
	}
	if err != nil {
		// crun writes both.
		fmt.Fprintln(os.Stderr, err)
		_ = os.WriteFile(log, []byte(err.Error()+"\n"), 0o600)
		return 255
	}
	return code
}

func runtimeExec(file, pidFile, console string, detach bool) (int, error) {
	var p struct {
		Args, Env []string
		Cwd       string
		Terminal  bool
		Size      consoleSize `json:"consoleSize"`
	}
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return 0, err
	}
	path, err := exec.LookPath(p.Args[0])
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("executable file `%s` not found in $PATH: No such file or directory", p.Args[0])
	}
	if err != nil {
		return 0, errors.New("open executable: Permission denied")
	}
	cmd := &exec.Cmd{Path: path, Args: p.Args, Env: p.Env, Dir: p.Cwd, SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if p.Terminal {
		slave, err := sendTerminal(console, p.Size)
		if err != nil {
			return 0, err
		}
		cmd.SysProcAttr.Setctty = true
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil || detach {
		return 0, err
	}
	_ = cmd.Wait()
	ws, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return exitCode(ws), nil
}

func sendTerminal(socket string, size consoleSize) (*os.File, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = master.Close() }()
	if size.Height > 0 {
		if err := pty.Setsize(master, &pty.Winsize{Rows: size.Height, Cols: size.Width}); err != nil {
			return nil, err
		}
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	_, _, err = conn.WriteMsgUnix([]byte("/dev/ptmx"), unix.UnixRights(int(master.Fd())), nil)
	return slave, err
}
