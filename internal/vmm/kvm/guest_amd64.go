package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctls and structures of the KVM API:
// https://docs.kernel.org/virt/kvm/api.html
const (
	getAPIVersion       = 0xae00
	createVM            = 0xae01
	getVCPUMmapSize     = 0xae04
	createVCPU          = 0xae41
	setUserMemoryRegion = 0x4020ae46
	run                 = 0xae80
	setRegs             = 0x4090ae82
	getSregs            = 0x8138ae83
	setSregs            = 0x4138ae84

	exitIO  = 2
	exitHLT = 5

	sregsSize     = 0x138
	csBase        = 0  // offset of sregs.cs.base
	csSelector    = 12 // of sregs.cs.selector: after base (8) and limit (4)
	exitReasonOff = 8  // of kvm_run.exit_reason
	guestBase     = 0x1000
)

type memoryRegion struct {
	slot, flags            uint32
	guest, size, userspace uint64
}

type regs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

func ioctl(fd int, req uintptr, arg uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		if errno == 0 {
			return int(n), nil
		}
		if !errors.Is(errno, unix.EINTR) {
			return 0, errno
		}
	}
}

// runGuest runs "out %al, $0x10; hlt" in real mode and expects both exits.
func runGuest(kvm int) error {
	if v, err := ioctl(kvm, getAPIVersion, 0); err != nil || v != apiVersion {
		return fmt.Errorf("API version %d: %w", v, errors.Join(err, errors.ErrUnsupported))
	}
	vm, err := ioctl(kvm, createVM, 0)
	if err != nil {
		return fmt.Errorf("create a VM: %w", err)
	}
	defer closeLater(vm)
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(mem) }()
	copy(mem, []byte{0xe6, 0x10, 0xf4})
	region := memoryRegion{guest: guestBase, size: uint64(len(mem)), userspace: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := ioctl(vm, setUserMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return fmt.Errorf("give the VM memory: %w", err)
	}
	vcpu, err := ioctl(vm, createVCPU, 0)
	if err != nil {
		return fmt.Errorf("create a virtual CPU: %w", err)
	}
	defer func() { _ = unix.Close(vcpu) }()
	size, err := ioctl(kvm, getVCPUMmapSize, 0)
	if err != nil {
		return err
	}
	state, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(state) }()
	if err := startAt(vcpu, guestBase); err != nil {
		return err
	}
	for _, want := range []uint32{exitIO, exitHLT} {
		if _, err := ioctl(vcpu, run, 0); err != nil {
			return fmt.Errorf("run: %w", err)
		}
		if got := *(*uint32)(unsafe.Pointer(&state[exitReasonOff])); got != want {
			return fmt.Errorf("exit for reason %d, expected %d", got, want)
		}
	}
	return nil
}

// startAt makes the CPU start at a real-mode address.
func startAt(vcpu int, addr uint64) error {
	var sregs [sregsSize]byte
	if _, err := ioctl(vcpu, getSregs, uintptr(unsafe.Pointer(&sregs[0]))); err != nil {
		return fmt.Errorf("read registers: %w", err)
	}
	*(*uint64)(unsafe.Pointer(&sregs[csBase])) = 0
	*(*uint16)(unsafe.Pointer(&sregs[csSelector])) = 0
	if _, err := ioctl(vcpu, setSregs, uintptr(unsafe.Pointer(&sregs[0]))); err != nil {
		return fmt.Errorf("set registers: %w", err)
	}
	r := regs{rip: addr, rflags: 2}
	if _, err := ioctl(vcpu, setRegs, uintptr(unsafe.Pointer(&r))); err != nil {
		return fmt.Errorf("set registers: %w", err)
	}
	return nil
}
