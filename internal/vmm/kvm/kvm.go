// Package kvm finds out whether KVM on this host can run an ordinary guest.
// A device that opens is not enough: there are hosts whose KVM runs only
// kernels made for it, and hosts on which it cannot run anything.
package kvm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	device       = "/dev/kvm"
	apiVersion   = 12 // since Linux 2.6.22; every later one is the same
	probeTimeout = 5 * time.Second
)

// Result is what was found. RunsGuest implies all the others.
type Result struct {
	Present   bool   `json:"present"`    // the device is there
	Permitted bool   `json:"permitted"`  // this user may open it
	CPUFlag   bool   `json:"cpu_flag"`   // the CPU says that it virtualizes: vmx or svm
	RunsGuest bool   `json:"runs_guest"` // a guest of two instructions ran
	Reason    string `json:"reason"`
	Remedy    string `json:"remedy,omitempty"`
}

// Probe looks at the host, and runs a guest. It takes milliseconds, and at most a
// few seconds where KVM is broken.
func Probe() Result {
	r, fd := look()
	if r.Reason != "" {
		return r
	}
	defer func() { _ = unix.Close(fd) }()
	ran := make(chan error, 1)
	go func() { ran <- runGuest(fd) }()
	var err error
	select {
	case err = <-ran:
	case <-time.After(probeTimeout):
		// The thread in KVM_RUN is lost; it ends with the process.
		err = fmt.Errorf("a guest of two instructions did not end in %s", probeTimeout)
	}
	if err != nil {
		r.Reason = "KVM does not run guests: " + err.Error()
		return r
	}
	r.RunsGuest = true
	r.Reason = "KVM runs guests"
	return r
}

// Look is Probe without the guest, and takes microseconds: where nothing speaks
// against it, RunsGuest says that a guest is expected to run.
func Look() Result {
	r, fd := look()
	if r.Reason == "" {
		_ = unix.Close(fd)
		r.RunsGuest, r.Reason = true, "KVM is there"
	}
	return r
}

// look opens the device, unless there is a reason why not.
func look() (r Result, fd int) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.Reason = "there is no " + device
		r.Remedy = "load the kvm module; in a cloud VM, choose a type with nested virtualization"
		return r, -1
	case errors.Is(err, fs.ErrPermission):
		r.Present = true
		r.Reason = device + " is not open to this user"
		r.Remedy = "sudo usermod -aG kvm $USER, and log in again"
		return r, -1
	case err != nil:
		r.Present = true
		r.Reason = fmt.Sprintf("open %s: %v", device, err)
		return r, -1
	}
	r.Present, r.Permitted = true, true
	cpuinfo, err := firstCPU()
	if err != nil {
		r.Reason = err.Error()
	} else if r.CPUFlag = hasFlag(cpuinfo, runtime.GOARCH); !r.CPUFlag {
		r.Reason = "the CPU has neither vmx nor svm: this KVM runs only kernels made for it"
		r.Remedy = "use a host with hardware virtualization; QEMU emulates meanwhile"
	}
	if r.Reason != "" {
		_ = unix.Close(fd)
		return r, -1
	}
	return r, fd
}

// firstCPU is the start of /proc/cpuinfo, with the first CPU: to make the text of
// all takes the kernel milliseconds where there are many.
func firstCPU() ([]byte, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 16<<10)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return b[:n], nil
}

// closeLater has the kernel take a VM down, which is more than half of the time that a
// probe takes, and which nobody has to wait for.
func closeLater(fd int) {
	go func() { _ = unix.Close(fd) }()
}

// hasFlag reports whether /proc/cpuinfo says that the CPU virtualizes. On
// arm64 it does not say: KVM has the device only where it works.
func hasFlag(cpuinfo []byte, arch string) bool {
	if arch != "amd64" {
		return true
	}
	for line := range bytes.Lines(cpuinfo) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if string(bytes.TrimSpace(key)) != "flags" {
			continue
		}
		for _, f := range bytes.Fields(value) {
			if s := string(f); s == "vmx" || s == "svm" {
				return true
			}
		}
		return false
	}
	return false
}
