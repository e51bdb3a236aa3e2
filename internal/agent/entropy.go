package agent

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// reseed gives the kernel's generator entropy that no other machine has, and
// has it begin anew with that: from here on /dev/urandom and getrandom(2) give
// what they give in no other clone, and so does vDSO getrandom (Linux 6.11),
// whose state in a process's own memory is as old as the kernel's last key.
// Each of the two calls fails unless it has done so.
//
// A VMGenID device says the same to a kernel with a driver for it (Linux 5.18,
// CONFIG_VMGENID), which then takes the device's new number for a seed. That
// may be sooner, but nobody is told when it was done; and the kernels of
// Debian's that are made for clouds have no such driver. Until one of the two
// has happened, clones that have been resumed draw the same numbers.
//
// The length of the entropy was checked. See random(4).
func reseed(entropy []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("reseed the kernel's random generator: %w", err)
	}
	defer func() { _ = f.Close() }()
	pool := struct {
		bits, size int32
		data       [agentapi.MaxEntropy]byte
	}{bits: int32(8 * len(entropy)), size: int32(len(entropy))}
	copy(pool.data[:], entropy)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool))); errno != 0 {
		return fmt.Errorf("give the kernel's random generator entropy: %w", errno)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0); err != nil {
		return fmt.Errorf("reseed the kernel's random generator: %w", err)
	}
	return nil
}
