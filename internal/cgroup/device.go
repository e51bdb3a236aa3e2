package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// DeviceOf finds the disk that a file lies on: the whole one, as io.max wants
// it. A file system that is not on one disk (tmpfs, overlay, btrfs, NFS) has none.
func DeviceOf(path string) (Device, error) { return deviceOf("/sys", path) }

func deviceOf(sys, path string) (Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Device{}, fmt.Errorf("find the disk of %s: %w", path, err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	number, err := wholeDisk(sys, number)
	if errors.Is(err, fs.ErrNotExist) {
		return Device{}, fmt.Errorf("find the disk of %s: its file system is not on one disk", path)
	}
	if err != nil {
		return Device{}, fmt.Errorf("find the disk of %s: %w", path, err)
	}
	return Device{Path: path, Number: number}, nil
}

// wholeDisk returns the disk of a partition, and a disk as it is.
func wholeDisk(sys, number string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(sys, "dev", "block", number))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); errors.Is(err, fs.ErrNotExist) {
		return number, nil
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	return strings.TrimSpace(string(b)), err
}
