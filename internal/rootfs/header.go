package rootfs

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
)

// What ext4 holds, as the converter writes it.
const (
	maxFile    = 42 << 30 // the converter writes the extent trees of larger files wrongly
	maxTarget  = 4095     // bytes of a symbolic link's target: it must fit into one block
	maxLinks   = 65000    // names of one file, or subdirectories of a directory
	maxMajor   = 1<<12 - 1
	maxMinor   = 1<<20 - 1
	maxName    = 255
	xattrSpace = 4096 - 36 // of one block, less its header and end mark
)

// The first and last second, in 1901 and 2310, that diskTime can tell the
// converter. An inode's own end is 2446.
const (
	minTime = -1 << 31
	maxTime = 1<<33 + 1<<31 - 1
)

// sanitize returns what an entry's header says that goes into the file
// system: type, owner, mode, time, extended attributes, link and device
// numbers, size. All of it is bounded; the name is left to the caller.
func (t *tree) sanitize(h *tar.Header) (*tar.Header, error) {
	out := &tar.Header{
		Typeflag: h.Typeflag, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		ModTime: diskTime(h.ModTime), Format: tar.FormatPAX,
	}
	if h.Uid < 0 || int64(h.Uid) >= math.MaxUint32 || h.Gid < 0 || int64(h.Gid) >= math.MaxUint32 {
		return nil, fmt.Errorf("%w: entry %q belongs to %d:%d", ErrCorrupt, h.Name, h.Uid, h.Gid)
	}
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeGNUSparse, tar.TypeCont: // '\x00': before POSIX
		out.Typeflag, out.Size = tar.TypeReg, h.Size
		if err := t.count(h); err != nil {
			return nil, err
		}
	case tar.TypeSymlink:
		out.Linkname = h.Linkname
		if h.Linkname == "" || len(h.Linkname) > min(maxTarget, t.limits.Name) {
			return nil, fmt.Errorf("%w: entry %q: link target of %d bytes", ErrUnsafe, h.Name, len(h.Linkname))
		}
	case tar.TypeChar, tar.TypeBlock:
		out.Devmajor, out.Devminor = h.Devmajor, h.Devminor
		if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
			return nil, fmt.Errorf("%w: entry %q is device %d:%d", ErrCorrupt, h.Name, h.Devmajor, h.Devminor)
		}
	case tar.TypeDir, tar.TypeFifo:
	default:
		return nil, fmt.Errorf("%w: entry %q has unknown type %q", ErrCorrupt, h.Name, h.Typeflag)
	}
	if err := t.remember(len(out.Linkname)); err != nil {
		return nil, err
	}
	var err error
	out.PAXRecords, err = t.xattrs(h)
	return out, err
}

// count adds a file's size to the sum of all.
func (t *tree) count(h *tar.Header) error {
	if h.Size < 0 || h.Size > t.limits.Bytes-t.bytes {
		return fmt.Errorf("%w: over %d MiB of files", ErrTooLarge, t.limits.Bytes>>20)
	}
	if h.Size > maxFile {
		return fmt.Errorf("%w: entry %q has %d GiB, the limit is %d", ErrTooLarge, h.Name, h.Size>>30, maxFile>>30)
	}
	t.bytes += h.Size
	return nil
}

// diskTime returns the time that makes the converter write m. It puts the lower
// 34 bits of the seconds into an inode as they are, where ext4 has a signed
// number of 32 bits and how often 2^32 is to be added to it: the two differ
// before 1970, and from 2038 on. What is out of range becomes its end.
func diskTime(m time.Time) time.Time {
	s, ns := m.Unix(), int64(m.Nanosecond())
	if s < minTime || s > maxTime {
		s, ns = min(max(s, minTime), maxTime), 0
	}
	low := int32(s) // it is meant to be cut off
	epoch := (s - int64(low)) >> 32
	return time.Unix(epoch<<32|int64(uint32(low)), ns)
}

// xattrs returns the extended attributes as PAX records. Those that ext4 has
// no name space for, and those with which overlayfs would be told what to
// hide or to redirect, are left out.
func (t *tree) xattrs(h *tar.Header) (map[string]string, error) {
	var out map[string]string
	size, space := 0, 0
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok || !keepXattr(name) {
			continue
		}
		if strings.HasPrefix(name, aclPrefix) {
			acl, err := diskACL(v)
			if err != nil {
				return nil, fmt.Errorf("%w: entry %q: %s: %w", ErrCorrupt, h.Name, name, err)
			}
			v = acl
		}
		size += len(name) + len(v)
		space += 16 + (len(name)+3)&^3 + (len(v)+3)&^3
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	if limit := min(t.limits.Xattrs, xattrSpace); size > limit || space > xattrSpace {
		return nil, fmt.Errorf("%w: entry %q has %d bytes of extended attributes, the limit is %d", ErrTooLarge, h.Name, size, limit)
	}
	return out, t.remember(size)
}

const aclPrefix = "system.posix_acl_"

func keepXattr(name string) bool {
	if len(name) > maxName || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
		return false
	}
	if name == aclPrefix+"access" || name == aclPrefix+"default" {
		return true
	}
	for _, space := range []string{"user.", "trusted.", "security."} {
		if strings.HasPrefix(name, space) && len(name) > len(space) {
			return true
		}
	}
	return false
}

// Tags of ACL entries that name a user or group; linux/posix_acl.h.
const (
	aclUser  = 0x02
	aclGroup = 0x08
)

// diskACL turns a POSIX ACL as getxattr(2) gives it (version 2, entries of 8
// bytes) into ext4's own form (version 1, the id only where there is one);
// fs/ext4/acl.h. The kernel refuses access to files with the other form.
func diskACL(v string) (string, error) {
	b := []byte(v)
	if len(b) < 4 || len(b)%8 != 4 || binary.LittleEndian.Uint32(b) != 2 {
		return "", fmt.Errorf("no POSIX ACL of version 2")
	}
	out := []byte{1, 0, 0, 0}
	for e := b[4:]; len(e) > 0; e = e[8:] {
		out = append(out, e[:4]...)
		if tag := binary.LittleEndian.Uint16(e); tag == aclUser || tag == aclGroup {
			out = append(out, e[4:8]...)
		}
	}
	return string(out), nil
}
