//go:build !amd64

package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ioctls of the KVM API: https://docs.kernel.org/virt/kvm/api.html
const (
	getAPIVersion = 0xae00
	createVM      = 0xae01
	createVCPU    = 0xae41
)

// runGuest creates a virtual CPU. On arm64 that needs the CPU's EL2, which a
// host that cannot run guests does not have.
func runGuest(kvm int) error {
	if v, err := unix.IoctlRetInt(kvm, getAPIVersion); err != nil || v != apiVersion {
		return fmt.Errorf("API version %d: %v", v, err)
	}
	vm, err := unix.IoctlRetInt(kvm, createVM)
	if err != nil {
		return fmt.Errorf("create a VM: %w", err)
	}
	defer closeLater(vm)
	vcpu, err := unix.IoctlRetInt(vm, createVCPU)
	if err != nil {
		return fmt.Errorf("create a virtual CPU: %w", err)
	}
	return unix.Close(vcpu)
}
