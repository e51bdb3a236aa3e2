package bridge

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// A list that changed while it was read is not believed.
func TestWhole(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name   string
		errs   []error // of each attempt; the last one is repeated
		asked  int
		want   error
		result []int
	}{
		{"at once", []error{nil}, 1, nil, []int{1}},
		{"interrupted twice", []error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, 3, nil, []int{3}},
		{"always interrupted", []error{netlink.ErrDumpInterrupted}, maxDumps, netlink.ErrDumpInterrupted, nil},
		{"another error", []error{broken}, 1, broken, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := 0
			got, err := whole(func() ([]int, error) {
				asked++
				return []int{asked}, tt.errs[min(asked, len(tt.errs))-1]
			})
			if asked != tt.asked || !errors.Is(err, tt.want) || !slices.Equal(got, tt.result) {
				t.Errorf("got %v, %v after %d", got, err, asked)
			}
		})
	}
}
