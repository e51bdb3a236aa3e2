package store

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vm"
)

// fullDisk fails until somebody has made room by removing the reserve.
func fullDisk(reserve string) func(string, any) error {
	return func(path string, v any) error {
		if _, err := os.Stat(reserve); err == nil {
			return &fs.PathError{Op: "write", Path: path, Err: unix.ENOSPC}
		}
		return writeJSON(path, v)
	}
}

// A full disk does not keep a record from saying how its VM has ended.
func TestAFullDiskStillHasRoomForLastWords(t *testing.T) {
	s := newStore(t)
	v := create(t, s, "web")
	dir := v.Dir()
	var st unix.Stat_t
	if err := unix.Stat(dir.Reserve(), &st); err != nil || st.Blocks*512 < reserveSize {
		t.Fatalf("the reserve takes %d bytes, %v", st.Blocks*512, err)
	}
	before, err := os.ReadFile(dir.Record())
	if err != nil {
		t.Fatal(err)
	}
	rec := v.Record()
	rec.Status = vm.StatusRunning
	if err := writeRecord(dir, &rec, fullDisk(dir.Reserve())); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("in mid-life: %v", err)
	}
	if now, err := os.ReadFile(dir.Record()); err != nil || string(now) != string(before) {
		t.Errorf("what was there is lost: %q, %v", now, err)
	}
	rec.Status, rec.Reason = vm.StatusExited, "the end"
	if err := writeRecord(dir, &rec, fullDisk(dir.Reserve())); err != nil {
		t.Errorf("at the end: %v", err)
	}
	if e, err := s.Find("web"); err != nil || e.Record.Reason != "the end" {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := os.Stat(dir.Reserve()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the reserve of a VM that has ended: %v", err)
	}
}

func TestTheReserveIsMadeAgain(t *testing.T) {
	s := newStore(t)
	v := create(t, s, "web")
	if err := os.Remove(v.Dir().Reserve()); err != nil {
		t.Fatal(err)
	}
	if err := v.Move(vm.StatusStarting, ""); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(v.Dir().Reserve()); err != nil || st.Size() != reserveSize {
		t.Errorf("%v, %v", st, err)
	}
}
