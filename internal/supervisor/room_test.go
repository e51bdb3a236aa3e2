package supervisor

import (
	"errors"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/rootfs"
)

// What cannot fit is refused before it is written, and only that.
func TestFits(t *testing.T) {
	for _, c := range []struct {
		name string
		need int64
		free bool
		want error
	}{
		{"nothing", 0, false, nil},
		{"more than there is", 1 << 60, false, rootfs.ErrNoSpace},
		{"more than there is, shared", 1 << 60, true, nil},
	} {
		dir := t.TempDir()
		err := fits(dir, "the disks", c.need, func() bool { return c.free })
		if !errors.Is(err, c.want) || (err != nil && !strings.Contains(err.Error(), dir)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
