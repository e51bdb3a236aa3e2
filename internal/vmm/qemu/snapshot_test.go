package qemu

import (
	"errors"
	"testing"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/memimage"
)

// Nothing is kept for a snapshot that is given up.
func TestDropSnapshot(t *testing.T) {
	to := vmm.SnapshotFiles{Memory: "memory", State: "state"}
	m := &machine{saved: map[string][]memimage.Range{to.Memory: {{Start: 0, End: memimage.Page}}}}
	m.DropSnapshot(to)
	if len(m.saved) != 0 {
		t.Errorf("it keeps %v", m.saved)
	}
	if err := m.FinishSnapshot(t.Context(), to); !errors.Is(err, errNotSaved) {
		t.Errorf("it can still be finished: %v", err)
	}
}
