package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pollPause is the wait between two looks at a group that is on its way out.
const pollPause = 2 * time.Millisecond

// ownerPause is how long systemd may take to remove a scope that is empty,
// before it is done for it: never, as long as systemd lives.
const ownerPause = 3 * time.Second

// remove kills what is in a group, waits for it, and removes the group. A scope
// is systemd's to remove: of one whose directory somebody else has taken away,
// systemd never learns that it is empty, and goes on knowing it.
func remove(ctx context.Context, dir string) error {
	began := time.Now()
	for {
		// In a loop: where there is no cgroup.kill, new ones may come meanwhile.
		// ENODEV: somebody is just removing it.
		if err := killAll(dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("kill what is in control group %s: %w", dir, err)
		}
		if !strings.HasSuffix(dir, scopeSuffix) || time.Since(began) > ownerPause {
			err := os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if !errors.Is(err, unix.EBUSY) { // processes that are still ending
				return fmt.Errorf("remove control group: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control group %s: its processes do not end: %w", dir, context.Cause(ctx))
		case <-time.After(pollPause):
		}
	}
}

// killAll kills all of a group at once (cgroup.kill, Linux 5.14), or one by one.
func killAll(dir string) error {
	err := write(filepath.Join(dir, "cgroup.kill"), "1")
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for f := range bytes.FieldsSeq(b) {
		pid, err := strconv.Atoi(string(f))
		if err != nil || pid <= 1 {
			continue // 0: a process of another namespace
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}
