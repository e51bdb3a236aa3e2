package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fcvm/fcvm/internal/atomicfile"
)

// writeOutput has a file written that somebody named: it is there whole or not
// at all, and replaces what was there. Only what is no regular file is written
// to as it is: a pipe, or a device, or what a link as /dev/stdout leads to.
func writeOutput(path string, perm os.FileMode, write func(io.Writer) error) error {
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return fmt.Errorf("write the output: %w", err)
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := atomicfile.Create(path, perm)
	if err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	defer f.Discard()
	if err := write(f); err != nil {
		return err
	}
	return f.Commit()
}
