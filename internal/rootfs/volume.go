package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// volumeFeatures are what a volume needs, whatever the host's mke2fs.conf says.
// Unlike a scratch disk it outlives its VM, however that ends: it has a journal.
const volumeFeatures = scratchFeatures + ",has_journal"

// filesSlack is how many inodes a disk that is made of a tree has beyond it.
const filesSlack = 64 << 10

// Volume makes an ext4 disk of size bytes at dst, which must not exist, that is
// empty or, with a tree, a copy of that directory: types, modes, times, links,
// extended attributes and owners. For another user than root the owner of what is
// its own becomes root, all others nobody, as in a user namespace.
//
// The disk is sparse. One that is made of a tree has at least as much room again,
// whatever the size says. The tree must not be changed meanwhile by those who are
// not trusted.
func Volume(ctx context.Context, dst string, size int64, tree string) (err error) {
	program, err := findMkfs()
	if err != nil {
		return err
	}
	m := mkfs{program: program, features: volumeFeatures}
	if tree != "" {
		used, files, err := measure(ctx, tree)
		if err != nil {
			return fmt.Errorf("make a disk of %s: %w", tree, err)
		}
		size = max(size, 2*used+MinScratch)
		m.own = os.Geteuid() != 0
		m.args = []string{"-d", tree}
		if need := files + filesSlack; need > size/16384 { // mke2fs makes an inode for each 16 KiB
			m.args = append(m.args, "-N", strconv.FormatInt(need, 10))
		}
	}
	if size < MinScratch || size > MaxScratch {
		return fmt.Errorf("make a volume: %d MiB is not within %d MiB and %d GiB", size/mib, MinScratch/mib, int64(MaxScratch)>>30)
	}
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make a volume: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(dst)
		}
	}()
	if err := errors.Join(f.Truncate((size+mib-1)/mib*mib), f.Close()); err != nil {
		return fmt.Errorf("make a volume: %w", err)
	}
	if err := m.run(ctx, dst); err != nil {
		return fmt.Errorf("make a volume: %w", noSpace(err, filepath.Dir(dst)))
	}
	return nil
}

// measure counts what a tree takes.
func measure(ctx context.Context, tree string) (bytes, files int64, err error) {
	err = filepath.WalkDir(tree, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		files++
		bytes += blockSize
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			bytes += st.Blocks * 512
		}
		return nil
	})
	return bytes, files, err
}
