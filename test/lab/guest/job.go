package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/test/lab/labapi"
)

const (
	path = labapi.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	home = "/home/user"

	// drainTime is how long a child that the job has left may keep its output.
	drainTime = 2 * time.Second
)

// runJob returns the job's exit code.
func runJob(out *output) (int, error) {
	if err := mountDisks(); err != nil {
		return 0, err
	}
	if err := prepareHost(); err != nil {
		return 0, err
	}
	job, err := readJob()
	if err != nil {
		return 0, err
	}
	if job.Bench {
		if err := lengthenSlices(); err != nil {
			return 0, err
		}
	}
	out.say(job, "/dev/kvm is there")
	if job.User {
		if err := addUser(); err != nil {
			return 0, err
		}
	}
	program, err := find(job.Args[0])
	if err != nil {
		return 0, err
	}
	return start(job, program, out)
}

func find(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fmt.Errorf("no program %s in the lab", name)
}

// addUser makes an ordinary user.
func addUser() error {
	for file, line := range map[string]string{
		"/etc/passwd": "user:x:1000:1000:user:/home/user:/bin/sh\n",
		"/etc/group":  "user:x:1000:\n",
		"/etc/subuid": "user:100000:65536\n",
		"/etc/subgid": "user:100000:65536\n",
	} {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = f.WriteString(line)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	for _, dir := range []string{home, runtimeDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chown(dir, labapi.UserID, labapi.UserID); err != nil {
			return err
		}
	}
	return nil
}

// userGroups are the control groups in which a user's programs run where
// systemd has started them: the manager's own is delegated to the user, with
// the controllers that Debian's user@.service names, and what is below it was
// made by the user's manager.
var userGroups = []string{"user.slice", "user-1000.slice", "user@1000.service", "app.slice", "job.scope"}

const userControllers = "+cpu +memory +pids"

// delegateGroup returns the user's group.
func delegateGroup() (string, error) {
	dir := "/sys/fs/cgroup"
	for i, name := range userGroups {
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
		if name != userGroups[len(userGroups)-1] {
			control := filepath.Join(dir, "cgroup.subtree_control")
			if err := os.WriteFile(control, []byte(userControllers), 0o644); err != nil {
				return "", fmt.Errorf("delegate cgroup controllers: %w", err)
			}
		}
		if i < 2 {
			continue // root's
		}
		own := []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}
		if i > 2 { // the user has made them: all files are the user's
			entries, err := os.ReadDir(dir)
			if err != nil {
				return "", err
			}
			for _, e := range entries {
				own = append(own, e.Name())
			}
		}
		for _, f := range own {
			if err := os.Chown(filepath.Join(dir, f), labapi.UserID, labapi.UserID); err != nil {
				return "", err
			}
		}
	}
	return dir, nil
}

func runtimeDir() string { return fmt.Sprintf("/run/user/%d", labapi.UserID) }

func start(job labapi.Job, program string, out *output) (int, error) {
	attr := &syscall.SysProcAttr{Setsid: true}
	env := append([]string{"PATH=" + path, "HOME=/root", "LANG=C.UTF-8", "TMPDIR=/tmp"}, job.Env...)
	if job.User {
		attr.Credential = &syscall.Credential{Uid: labapi.UserID, Gid: labapi.UserID}
		env = append(env, "HOME="+home, "USER=user", "XDG_RUNTIME_DIR="+runtimeDir())
		dir, err := delegateGroup()
		if err != nil {
			return 0, err
		}
		group, err := os.Open(dir)
		if err != nil {
			return 0, err
		}
		defer func() { _ = group.Close() }()
		attr.UseCgroupFD, attr.CgroupFD = true, int(group.Fd())
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	var pumps sync.WaitGroup
	files := []*os.File{null}
	for _, t := range []agentapi.FrameType{agentapi.FrameStdout, agentapi.FrameStderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		files = append(files, w)
		pumps.Go(func() { out.copyFrames(t, r) })
	}
	p, err := os.StartProcess(program, append([]string{program}, job.Args[1:]...), &os.ProcAttr{
		Dir: labapi.WorkDir, Env: env, Files: files, Sys: attr,
	})
	for _, f := range files {
		_ = f.Close()
	}
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", program, err)
	}
	code := reap(p.Pid)
	drained := make(chan struct{})
	go func() {
		pumps.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(drainTime):
	}
	out.say(job, "the job has ended")
	return code, nil
}

// reap waits for all children, which is the first process's duty, until the
// one that matters has ended.
func reap(pid int) int {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR), err == nil && got != pid:
			continue
		case err != nil:
			return failedCode
		case ws.Signaled():
			return 128 + int(ws.Signal())
		default:
			return ws.ExitStatus()
		}
	}
}
