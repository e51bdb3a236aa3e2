package supervisor

import (
	"os"
	"testing"

	"github.com/fcvm/fcvm/internal/vmm"
)

// guest is a machine whose VMM is this process, or has ended.
type guest struct {
	vmm.Machine
	pid int
}

func (g guest) PID() int { return g.pid }

// wholeGuest is one whose VMM may write all of its memory.
type wholeGuest struct {
	guest
	whole bool
}

func (g wholeGuest) WritesWhole() bool { return g.whole }

func TestMemoryRoom(t *testing.T) {
	const memory, parent = 1 << 40, 1 << 30
	here := guest{pid: os.Getpid()}
	for _, c := range []struct {
		name     string
		machine  vmm.Machine
		memory   int64
		from, to int64
	}{
		{"what it has touched", here, memory, parent + 1, memory / 2},
		{"no more than there is", here, parent, parent, parent},
		{"with zeros", wholeGuest{here, true}, memory, memory, memory},
		{"only what has changed", wholeGuest{here, false}, memory, parent + 1, memory / 2},
		{"a VMM that cannot be looked at", guest{pid: -1}, memory, memory, memory},
	} {
		if got := memoryRoom(c.machine, c.memory, parent); got < c.from || got > c.to {
			t.Errorf("%s: %d, not %d to %d", c.name, got, c.from, c.to)
		}
	}
}
