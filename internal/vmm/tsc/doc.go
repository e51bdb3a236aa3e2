// Package tsc measures the host's time stamp counter, which QEMU's emulation
// of x86 hands to the guest as it is. A guest that measures it itself, by the
// devices that QEMU emulates, gets it wrong by a multiple when the host is
// busy, and its clock with it; so it is told (tsc_early_khz=).
package tsc
