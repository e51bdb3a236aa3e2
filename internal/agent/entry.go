package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

const (
	// maxRuntimeLog bounds what is told of the runtime's log, bytes.
	maxRuntimeLog = 4 << 10

	// consoleGrace is for a terminal that the runtime has sent before its end,
	// consoleTimeout for one that it is about to send.
	consoleGrace   = 50 * time.Millisecond
	consoleTimeout = 10 * time.Second
)

// entry is a command in the container. The OCI runtime enters it, which takes
// a tenth of what Podman takes to have the runtime do so.
type entry struct {
	agent   *agent
	req     agentapi.ExecRequest
	process []byte // OCI process, JSON
	id      string // of the container

	dir    string  // the files of this entry
	child  *child  // the runtime; it ends with the command, or at its start if that is detached
	held   *output // by which the runtime's own words come, held back until the command runs; nil: none
	runs   running
	ended  chan struct{} // closed when the runtime has ended
	seen   chan struct{} // closed when the command runs, or is known to run never
	status syscall.WaitStatus
}

func (a *agent) newEntry(req agentapi.ExecRequest) (*entry, error) {
	if err := checkEntry(req); err != nil {
		return nil, err
	}
	root, err := a.container.openRoot()
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.close() }()
	id, err := a.container.engine.id()
	if err != nil {
		return nil, err
	}
	req.Env = slices.Concat(a.state.execEnv(), req.Env)
	process, err := entryProcess(filepath.Join(a.container.engine.state, id, "config.json"), root, a.state.container(), req)
	if err != nil {
		return nil, err
	}
	return &entry{
		agent: a, req: req, process: process, id: id,
		ended: make(chan struct{}), seen: make(chan struct{}),
	}, nil
}

// checkEntry refuses what no process can be given.
func checkEntry(req agentapi.ExecRequest) error {
	if req.WorkDir != "" && !filepath.IsAbs(req.WorkDir) {
		return fmt.Errorf("working directory %q is not absolute", req.WorkDir)
	}
	for _, list := range [][]string{req.Args, req.Env} {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return fmt.Errorf("%q has a zero byte", s)
			}
		}
	}
	return nil
}

func (e *entry) start() (*stdio, error) {
	if err := e.prepare(); err != nil {
		return nil, err
	}
	io, err := e.launch()
	if err != nil {
		_ = os.RemoveAll(e.dir)
		return nil, err
	}
	return io, nil
}

// prepare writes the files that the runtime reads.
func (e *entry) prepare() error {
	if err := os.MkdirAll(e.agent.container.engine.entries, 0o700); err != nil {
		return fmt.Errorf("enter the container: %w", err)
	}
	dir, err := os.MkdirTemp(e.agent.container.engine.entries, "")
	if err == nil {
		e.dir = dir
		err = os.WriteFile(e.file("process.json"), e.process, 0o600)
	}
	if err != nil {
		return fmt.Errorf("enter the container: %w", err)
	}
	return nil
}

func (e *entry) file(name string) string { return filepath.Join(e.dir, name) }

func (e *entry) launch() (*stdio, error) {
	args := []string{
		"--log=" + e.file("log"), "exec", "--process=" + e.file("process.json"), "--pid-file=" + e.file("pid"),
	}
	if e.req.Detach {
		args = append(args, "--detach")
	}
	var console *net.UnixListener
	if e.req.TTY {
		var err error
		if console, err = net.ListenUnix("unix", &net.UnixAddr{Name: e.file("console"), Net: "unix"}); err != nil {
			return nil, fmt.Errorf("make the console socket: %w", err)
		}
		defer func() { _ = console.Close() }()
		args = append(args, "--console-socket="+e.file("console"))
	}
	cmd := exec.Command(e.agent.container.engine.runtime, append(args, e.id)...)
	cmd.Env = []string{"PATH=" + guestPath}
	cmd.Dir = "/"
	io := &stdio{}
	if !e.req.TTY && !e.req.Detach {
		var err error
		if io, err = newStdio(cmd, false, e.req.Stdin); err != nil {
			return nil, err
		}
		// The runtime's own words are in its log as well.
		e.held = io.out[len(io.out)-1]
		e.held.hold = make(chan struct{})
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	child, err := e.agent.spawn.start(cmd)
	io.started()
	if err != nil {
		io.close()
		return nil, fmt.Errorf("start %s: %w", e.agent.container.engine.runtime, err)
	}
	e.child = child
	go e.reap()
	return e.settle(io, console)
}

// settle waits for what must be there before the streams can be joined: a
// terminal with its command, and a detached command.
func (e *entry) settle(io *stdio, console *net.UnixListener) (*stdio, error) {
	if console != nil {
		master, err := e.acceptTerminal(console)
		if err != nil {
			return nil, errors.Join(e.failure(), err)
		}
		io = ttyStdio(master)
	}
	go e.watch()
	if e.req.Detach {
		<-e.ended
	}
	if e.req.TTY { // what is typed before is for nobody: Ctrl-C would be lost
		<-e.seen
	}
	if e.req.Detach || e.req.TTY {
		if err := e.failure(); err != nil {
			io.close()
			return nil, err
		}
	}
	return io, nil
}

// acceptTerminal takes the terminal's master from the runtime, if it comes to
// have one.
func (e *entry) acceptTerminal(l *net.UnixListener) (*os.File, error) {
	got := make(chan struct{})
	defer close(got)
	go func() {
		select {
		case <-got:
		case <-e.ended:
			// A command that ended at once may have left its terminal here.
			_ = l.SetDeadline(time.Now().Add(consoleGrace))
		}
	}()
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("the runtime made no terminal: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadDeadline(time.Now().Add(consoleTimeout)); err != nil {
		return nil, err
	}
	return receiveFile(conn)
}

// reap waits for the runtime.
func (e *entry) reap() {
	e.status = <-e.child.done
	close(e.ended)
}

// watch waits until the command runs, or the runtime has ended.
func (e *entry) watch() {
	defer close(e.seen)
	tick := time.NewTicker(nearPoll)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-e.ended:
			over = true
		case <-tick.C:
		}
		pid, err := readPID(e.file("pid"))
		if err != nil || over {
			continue
		}
		e.runs.began(pid)
		if e.held != nil {
			close(e.held.hold)
			e.held = nil
		}
		return
	}
}

func readPID(path string) (int, error) {
	pid, err := readInt(path)
	if err == nil && pid <= 1 {
		err = fmt.Errorf("no process id in %s: %d", path, pid)
	}
	if err != nil {
		return 0, err
	}
	return pid, nil
}

func (e *entry) signal(sig syscall.Signal) { e.runs.signal(sig) }

func (e *entry) wait() agentapi.Exit {
	<-e.ended
	if !e.req.Detach { // else the runtime's end is not the command's
		e.runs.ended()
	}
	<-e.seen
	exit := agentapi.Exit{Code: exitCode(e.status)}
	var failed *notStarted
	if err := e.failure(); errors.As(err, &failed) {
		exit = failed.exit
		if e.held != nil {
			e.held.text(maxRuntimeLog)
		}
	}
	if e.held != nil {
		close(e.held.hold)
	}
	_ = os.RemoveAll(e.dir)
	return exit
}

// failure says why the command does not run; nil while nothing speaks against
// it. The runtime writes to its log only what keeps it from its work.
func (e *entry) failure() error {
	f, err := os.Open(e.file("log"))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, maxRuntimeLog)
	n, _ := f.Read(b)
	text := strings.TrimSpace(string(b[:n]))
	if text == "" {
		return nil
	}
	return &notStarted{runtimeExit(startError(text))}
}

// runtimeExit gives a message of the runtime the exit code that shells use.
func runtimeExit(msg string) agentapi.Exit {
	e := agentapi.Exit{Code: 126, Failed: true, Error: msg}
	switch {
	case strings.HasPrefix(msg, "executable file `"), // … not found in $PATH
		msg == "exec: No such file or directory": // a script's interpreter
		e.Code = 127
	case strings.Contains(msg, "/status`: No such file"), strings.HasSuffix(msg, "is not running"):
		e.Code, e.Error = 125, errNotRunning.Error()
	}
	return e
}

// ttyStdio is the streams of a process on a terminal that is there.
func ttyStdio(master *os.File) *stdio {
	return &stdio{
		stdin: master, tty: master,
		out: []*output{{frame: agentapi.FrameStdout, f: master, grace: ttyGrace}},
	}
}

// receiveFile takes one descriptor out of a message (unix(7), SCM_RIGHTS).
func receiveFile(conn *net.UnixConn) (*os.File, error) {
	// The message itself is a name of no use.
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("receive the terminal: no descriptor came (%w)", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive the terminal: no descriptor came (%w)", err)
	}
	// So that the runtime's poller takes it, and a read can be ended.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
