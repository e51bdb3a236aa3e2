package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/fcvm/fcvm/internal/atomicfile"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vm"
)

// reserveSize is more than a record and its new version take, bytes.
const reserveSize = 128 << 10

// writeRecord writes a record in one step, by means of write. While a VM lives
// a file beside it keeps some room on the disk: one that is full must not keep
// its record from saying how it has ended.
func writeRecord(dir paths.VMDir, rec *vm.Record, write func(path string, v any) error) error {
	err := write(dir.Record(), rec)
	// Only for its last words: what is freed for others may be gone by then.
	if isNoSpace(err) && rec.Status.Final() && os.Remove(dir.Reserve()) == nil {
		err = write(dir.Record(), rec)
	}
	if err != nil {
		return err
	}
	if rec.Status.Final() {
		if err := os.Remove(dir.Reserve()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("write %s: %w", dir.Record(), err)
		}
		return nil
	}
	return keepReserve(dir, rec.Status)
}

// keepReserve makes the reserve, if there is none. Only a VM that is new does
// not go on without.
func keepReserve(dir paths.VMDir, status vm.Status) error {
	if _, err := os.Stat(dir.Reserve()); err == nil {
		return nil
	}
	// Not a hole, and not all zeros: it is to take room.
	b := make([]byte, reserveSize)
	for i := range b {
		b[i] = byte(i*i>>8 ^ i)
	}
	err := atomicfile.WriteSoon(dir.Reserve(), b, 0o600) // what is written has its room already
	if err != nil && status == vm.StatusCreated {
		return fmt.Errorf("write %s: %w", dir.Reserve(), err)
	}
	return nil
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
