package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// noteTime is how long the monitor may take to note how a container ended.
	noteTime = 30 * time.Second

	// leaveAfter is how long Podman is left to note for itself that the container
	// runs, which is for those who ask it in the guest.
	leaveAfter = 250 * time.Millisecond

	// lostCode is the exit code of a container that nobody knows the end of, as
	// Docker has it.
	lostCode = 255
)

// monitorFiles are what conmon and this agent know each other by.
type monitorFiles struct {
	pid  string // conmon's process id
	exit string // the container's exit code, in digits, from its end on
}

// monitor is conmon, which stays with the container that Podman has had it start.
type monitor struct {
	pidfd int
	exit  string // file
}

func openMonitor(f monitorFiles) (*monitor, error) {
	pid, err := readPID(f.pid)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &monitor{fd, f.exit}, nil
}

// leave ends Podman once the container runs. All that it would do is to look four
// times a second whether the container still runs, for as long as it does, and in
// each clone: thirty changes of tasks a time, and 8 MiB that are its own.
// conmon notes how the container ends. Where it cannot be found, Podman stays.
//
// That takes a container that has the agent's own pipes; what is written to a
// terminal comes by Podman.
func (c *container) leave(podman int) {
	if c.engine.monitor == nil || podman < 0 {
		return
	}
	select {
	case <-c.ended:
		return
	case <-time.After(leaveAfter):
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 { // it was over before it was seen
		return
	}
	id, err := c.engine.id()
	if err != nil {
		return
	}
	m, err := openMonitor(c.engine.monitor(id))
	if err != nil {
		slog.Warn("Podman stays with the container", "error", err)
		return
	}
	// A Podman that has seen the end of the container takes away what conmon has
	// noted, and has the exit code itself: so it sees none while this looks for one.
	_ = unix.PidfdSendSignal(podman, unix.SIGSTOP, nil, 0)
	if gone, err := waitGone(0, c.pidfd); gone >= 0 || err != nil {
		_ = unix.PidfdSendSignal(podman, unix.SIGCONT, nil, 0)
		_ = unix.Close(m.pidfd)
		return
	}
	_ = unix.PidfdSendSignal(podman, unix.SIGKILL, nil, 0)
	c.monitor = m
}

// wait returns the exit code of the container whose first process is first, a pidfd,
// once it has ended. Without its monitor a container is lost: it is killed.
func (m *monitor) wait(first int) int {
	defer m.end()
	if _, err := waitGone(-1, first, m.pidfd); err != nil {
		slog.Error("wait for the container", "error", err)
	}
	for end := time.Now().Add(noteTime); time.Now().Before(end); {
		// Before the look: what is not noted by its end never will be.
		gone, _ := waitGone(2, m.pidfd)
		if code, ok := m.code(); ok {
			return code
		}
		if gone == m.pidfd {
			break
		}
	}
	_ = unix.PidfdSendSignal(first, unix.SIGKILL, nil, 0)
	slog.Error("the container's monitor has not noted its exit code")
	return lostCode
}

// end kills conmon. What it would do next is to have a Podman clean up after the
// container, on a machine that is about to be switched off.
func (m *monitor) end() {
	_ = unix.PidfdSendSignal(m.pidfd, unix.SIGKILL, nil, 0)
	_ = unix.Close(m.pidfd)
}

// code is what conmon has noted: it writes the file in one piece.
func (m *monitor) code() (int, bool) {
	code, err := readInt(m.exit)
	return code & 0xff, err == nil
}

// readInt reads a file that holds a number in decimal digits.
func readInt(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return n, nil
}

// waitGone waits until one of the processes has ended, and returns its pidfd; or -1
// after so many milliseconds, of which -1 is no limit (poll(2)).
func waitGone(ms int, pidfds ...int) (int, error) {
	fds := make([]unix.PollFd, len(pidfds))
	for i, fd := range pidfds {
		fds[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	for {
		_, err := unix.Poll(fds, ms)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		for _, f := range fds {
			if err == nil && f.Revents != 0 {
				return int(f.Fd), nil
			}
		}
		return -1, err
	}
}
