package uffd

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/userfaultfd.h. The encoding of ioctl numbers is that of
// asm-generic/ioctl.h, which x86 and arm64 share.
const (
	apiVersion   = 0xAA // UFFD_API
	ioctlType    = 0xAA // UFFDIO
	userModeOnly = 1    // UFFD_USER_MODE_ONLY
	modeMissing  = 1    // UFFDIO_REGISTER_MODE_MISSING

	dirRead      = 2 << 30 // _IOR: the kernel's side of it is a read
	dirReadWrite = 3 << 30 // _IOWR

	ioctlNew      = ioctlType << 8 // USERFAULTFD_IOC_NEW, of /dev/userfaultfd
	ioctlAPI      = dirReadWrite | unsafe.Sizeof(apiArg{})<<16 | ioctlType<<8 | 0x3F
	ioctlRegister = dirReadWrite | unsafe.Sizeof(registerArg{})<<16 | ioctlType<<8 // number 0
	ioctlWake     = dirRead | unsafe.Sizeof(rangeArg{})<<16 | ioctlType<<8 | 0x02
	ioctlCopy     = dirReadWrite | unsafe.Sizeof(copyArg{})<<16 | ioctlType<<8 | 0x03
	ioctlZeropage = dirReadWrite | unsafe.Sizeof(zeropageArg{})<<16 | ioctlType<<8 | 0x04
)

// struct uffdio_api
type apiArg struct{ api, features, ioctls uint64 }

// struct uffdio_range
type rangeArg struct{ start, length uint64 }

// struct uffdio_register
type registerArg struct {
	rng          rangeArg
	mode, ioctls uint64
}

// struct uffdio_copy
type copyArg struct {
	dst          uint64
	src          unsafe.Pointer
	length, mode uint64
	copied       int64 // bytes, or a negative error number
}

// struct uffdio_zeropage
type zeropageArg struct {
	rng    rangeArg
	mode   uint64
	zeroed int64 // bytes, or a negative error number
}

// ioctl takes a pointer to one of the structures above.
func (u *FD) ioctl(request uintptr, arg unsafe.Pointer) error {
	var errno unix.Errno
	err := u.raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// Register has faults on missing pages in the range reported. Start and length
// are multiples of the size of its pages.
func (u *FD) Register(start, length uint64) error {
	a := registerArg{rng: rangeArg{start, length}, mode: modeMissing}
	if err := u.ioctl(ioctlRegister, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("register %#x bytes at %#x: %w", length, start, err)
	}
	return nil
}

// Copy puts src into missing pages from dst on, and wakes who waits for them.
// dst and the length of src are multiples of the size of the pages there. It
// returns how many bytes it has put; with fewer than len(src) the next page is
// one that it can say an error about, when it is asked to go on there.
func (u *FD) Copy(dst uint64, src []byte) (int, error) {
	a := copyArg{dst: dst, src: unsafe.Pointer(unsafe.SliceData(src)), length: uint64(len(src))}
	err := u.ioctl(ioctlCopy, unsafe.Pointer(&a))
	return filled("copy", dst, a.copied, err)
}

// Zero is Copy of length zero bytes, for pages of the system's own size (not
// huge ones). It costs no memory until a page is written.
func (u *FD) Zero(dst, length uint64) (int, error) {
	a := zeropageArg{rng: rangeArg{dst, length}}
	err := u.ioctl(ioctlZeropage, unsafe.Pointer(&a))
	return filled("zero", dst, a.zeroed, err)
}

func filled(what string, dst uint64, done int64, err error) (int, error) {
	if err == nil || done > 0 { // EAGAIN, when it was only a part
		return int(done), nil
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		err = ErrExists
	case errors.Is(err, unix.EAGAIN):
		err = ErrChanging
	case errors.Is(err, unix.ENOENT):
		err = ErrUnmapped
	case errors.Is(err, unix.ESRCH):
		err = ErrGone
	}
	return 0, fmt.Errorf("%s a page at %#x: %w", what, dst, err)
}

// Wake lets those go on that wait for pages of the range. If their page is
// still missing, they fault again.
func (u *FD) Wake(start, length uint64) error {
	a := rangeArg{start, length}
	if err := u.ioctl(ioctlWake, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("wake who waits at %#x: %w", start, err)
	}
	return nil
}
