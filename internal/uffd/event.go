package uffd

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Sizes of struct uffd_msg, bytes, and of what is read at once.
const (
	messageSize = 32
	maxMessages = 32
)

// Kind is what an event is about: the UFFD_EVENT_ numbers.
type Kind uint8

const (
	// Fault: a thread waits for the page at Start.
	Fault Kind = 0x12
	// Fork: the process has forked, with UFFD_FEATURE_EVENT_FORK. The child's
	// descriptor, which the kernel opens in the process that reads the event,
	// is closed.
	Fork Kind = 0x13
	// Remap: memory has moved, from Start to End.
	Remap Kind = 0x14
	// Remove: the pages from Start to End are about to be emptied, by madvise(2)
	// with MADV_DONTNEED, MADV_FREE or MADV_REMOVE. A fault there wants zeros
	// from now on.
	Remove Kind = 0x15
	// Unmap: the pages from Start to End are not mapped any more.
	Unmap Kind = 0x16
)

func (k Kind) String() string {
	switch k {
	case Fault:
		return "fault"
	case Fork:
		return "fork"
	case Remap:
		return "remap"
	case Remove:
		return "remove"
	case Unmap:
		return "unmap"
	}
	return fmt.Sprintf("event %#x", uint8(k))
}

// Event is one message of the kernel's. Addresses are those of the process
// whose memory it is.
type Event struct {
	Kind  Kind
	Start uint64 // of a Fault: where, rounded down to a page
	End   uint64 // behind the last byte
	Write bool   // of a Fault: it was a write

	child int // of a Fork: a descriptor, plus 1
}

const faultWrite = 1 // UFFD_PAGEFAULT_FLAG_WRITE

// parse decodes a struct uffd_msg of messageSize bytes.
func parse(b []byte) Event {
	e := Event{Kind: Kind(b[0])}
	first, second := binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])
	switch e.Kind {
	case Fault:
		e.Write, e.Start = first&faultWrite != 0, second
	case Fork:
		e.child = int(binary.NativeEndian.Uint32(b[8:])) + 1
	case Remap, Remove, Unmap:
		e.Start, e.End = first, second
	}
	return e
}

func (e *Event) closeChild() {
	if e.Kind == Fork {
		_ = unix.Close(e.child - 1)
		e.child = 0
	}
}
