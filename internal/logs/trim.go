package logs

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Trim gives back the disk space of all but the last keep bytes, more or
// less, of a file that another process appends to: a console, which its guest
// may fill as it likes. The file keeps its length, so that nobody who reads or
// writes it is disturbed; what was there reads as a hole.
func Trim(path string, keep int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("trim log: %w", err)
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("trim log: %w", err)
	}
	const sector, page = 512, 4096 // bytes: the unit of st_blocks (stat(2)), and what has no holes within
	if st.Blocks*sector <= 2*keep {
		return nil
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, (st.Size-keep)/page*page); err == nil {
		return nil
	}
	// A file system without holes: better nothing of it than a full disk.
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("trim log: %w", err)
	}
	return nil
}

// SkipHole moves to where the data of a trimmed file begins.
func SkipHole(f *os.File) error {
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if err != nil || at == 0 { // no data, or a file system that knows no holes
		_, err = f.Seek(0, io.SeekStart)
	}
	return err
}
