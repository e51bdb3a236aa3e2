package qemu

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/fcvm/fcvm/internal/vmm"
)

// The file with a machine's state is what QEMU has written, followed by a
// trailer: stateInfo as JSON, its length (4 bytes, big-endian), stateMagic.
// QEMU stops reading where its own part ends.
const (
	stateMagic = "fcvmqemu"
	tailSize   = 4 + len(stateMagic)
	maxInfo    = 64 << 10 // bytes
	maxState   = 1 << 30  // bytes; 300 KiB are usual
)

var errState = errors.New("corrupt state of a QEMU machine")

// stateInfo says what a state was saved by, and of which machine. QEMU compares
// little of that itself: it would load into another machine what happens to fit.
type stateInfo struct {
	QEMU   version `json:"qemu"`
	Size   int64   `json:"size"` // of QEMU's part, bytes
	SHA256 []byte  `json:"sha256"`
	Shape  shape   `json:"shape"`
}

// shape is what has to be the same in the machine that a state is loaded into.
type shape struct {
	Arch      string   `json:"arch"`
	KVM       bool     `json:"kvm"`
	CPUs      int      `json:"cpus"`
	MemoryMiB int      `json:"memory_mib"`
	Disks     []string `json:"disks"` // their ids; those that are read-only with a "-" before it
	Net       bool     `json:"net"`
	MTU       int      `json:"mtu"`
	// TSCKHz is the speed of the time stamp counter by which the guest tells time: the
	// host's, without KVM. 0: it does not use it.
	TSCKHz int `json:"tsc_khz,omitempty"`
}

func shapeOf(cfg *vmm.Config, h host) shape {
	s := shape{
		Arch: runtime.GOARCH, KVM: h.kvm, CPUs: cfg.CPUs, MemoryMiB: cfg.MemoryMiB, Net: cfg.Net != nil, TSCKHz: h.tscKHz,
	}
	if s.Net {
		s.MTU = cfg.Net.MTU
	}
	for _, d := range cfg.Disks {
		id := d.ID
		if d.ReadOnly {
			id = "-" + id
		}
		s.Disks = append(s.Disks, id)
	}
	return s
}

// Limits on how much a time stamp counter's speed may differ: a part in so many,
// which is what measurements of one differ by, and how often it is measured until it
// is another's.
const (
	tscTolerance = 1000
	tscTries     = 5
)

// checkTime refuses to load the state of a guest whose time would run faster or slower
// on this host. khz measures the host's time stamp counter; 0: it is unfit.
func (s shape) checkTime(khz func() int) error {
	if s.TSCKHz == 0 {
		return nil
	}
	var here int
	for range tscTries {
		here = khz()
		if here > 0 && max(here, s.TSCKHz)-min(here, s.TSCKHz) <= s.TSCKHz/tscTolerance {
			return nil
		}
	}
	return fmt.Errorf("%w: its guest tells time by a time stamp counter of %d kHz, and this host's has %d (0: unfit); take the snapshot again on this host", vmm.ErrIncompatible, s.TSCKHz, here)
}

// differs names the first thing in which a machine is not as the state's, or "".
func (s shape) differs(is shape) string {
	for _, c := range []struct {
		what      string
		was, want any
	}{
		{"architecture", s.Arch, is.Arch},
		{"use of KVM", s.KVM, is.KVM},
		{"number of CPUs", s.CPUs, is.CPUs},
		{"memory in MiB", s.MemoryMiB, is.MemoryMiB},
		{"disks", fmt.Sprint(s.Disks), fmt.Sprint(is.Disks)},
		{"network interface", s.Net, is.Net},
		{"MTU", s.MTU, is.MTU},
	} {
		if c.was != c.want {
			return fmt.Sprintf("%s: %v, this machine's: %v", c.what, c.was, c.want)
		}
	}
	return ""
}

// sealState adds the trailer to what QEMU has written.
func sealState(f *os.File, v version, s shape) error {
	sum, size, err := digest(f)
	if err != nil {
		return err
	}
	b, err := json.Marshal(stateInfo{QEMU: v, Size: size, SHA256: sum, Shape: s})
	if err != nil {
		return err
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(b)))
	_, err = f.WriteAt(append(b, stateMagic...), size)
	return err
}

func digest(r io.ReaderAt) (sum []byte, size int64, err error) {
	h := sha256.New()
	size, err = io.Copy(h, io.NewSectionReader(r, 0, maxState+1))
	if err == nil && (size == 0 || size > maxState) {
		err = fmt.Errorf("%w: it has %d bytes", errState, size)
	}
	return h.Sum(nil), size, err
}

// readState checks the file with a state against its trailer. size is the
// file's.
func readState(f io.ReaderAt, size int64) (stateInfo, error) {
	var info stateInfo
	tail := make([]byte, tailSize)
	if size < int64(tailSize) || size > maxState+maxInfo+int64(tailSize) {
		return info, fmt.Errorf("%w: it has %d bytes", errState, size)
	}
	if _, err := f.ReadAt(tail, size-int64(tailSize)); err != nil {
		return info, err
	}
	length := int64(binary.BigEndian.Uint32(tail))
	if string(tail[4:]) != stateMagic || length > maxInfo || length > size-int64(tailSize) {
		return info, fmt.Errorf("%w: it has no end", errState)
	}
	b := make([]byte, length)
	at := size - int64(tailSize) - length
	if _, err := f.ReadAt(b, at); err != nil {
		return info, err
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, fmt.Errorf("%w: %w", errState, err)
	}
	if info.Size != at {
		return info, fmt.Errorf("%w: %d bytes, not %d", errState, at, info.Size)
	}
	sum, _, err := digest(io.NewSectionReader(f, 0, at))
	if err != nil {
		return info, err
	}
	if !bytes.Equal(sum, info.SHA256) {
		return info, fmt.Errorf("%w: its checksum is wrong", errState)
	}
	return info, nil
}
