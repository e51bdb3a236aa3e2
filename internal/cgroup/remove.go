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
	"time"

	"golang.org/x/sys/unix"
)

// pollPause is the wait between two looks at a group that is on its way out.
const pollPause = 2 * time.Millisecond

// remove kills what is in a group, waits for it, and removes the group. One of
// systemd's is removed by systemd, when it is empty; whoever is first.
func remove(ctx context.Context, dir string) error {
	for {
		// In a loop: where there is no cgroup.kill, new ones may come meanwhile.
		if err := killAll(dir); gone(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("kill what is in control group %s: %w", dir, err)
		}
		err := os.Remove(dir)
		if err == nil || gone(err) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) { // processes that are still ending
			return fmt.Errorf("remove control group: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control group %s: its processes do not end: %w", dir, context.Cause(ctx))
		case <-time.After(pollPause):
		}
	}
}

func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

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
