package hostport

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/network"
)

// Of a range the first port is taken that is free, and it is said when none is.
func TestOpenRange(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	for _, protocol := range []string{network.TCP, network.UDP} {
		asked := network.Port{HostIP: loopback, GuestPort: 80, Protocol: protocol}
		taken := func(p network.Port) (*Opened, uint16) {
			list, err := Open(t.Context(), p)
			if err != nil {
				t.Fatalf("%s: %v", p, err)
			}
			t.Cleanup(func() { CloseAll(list) })
			return list[0], list[0].Port().HostPort
		}
		_, first := taken(asked)
		for first > 65000 {
			_, first = taken(asked)
		}
		asked.HostPort, asked.HostPortEnd = first, first+100
		o, second := taken(asked)
		if p := o.Port(); second <= first || second > first+100 || p.HostPortEnd != 0 {
			t.Errorf("%s: got %s", asked, p)
		}
		// One whose ports we have all.
		asked.HostPort, asked.HostPortEnd = second, second+1
		if _, third := taken(asked); third == second+1 {
			_, err := Open(t.Context(), asked)
			if !errors.Is(err, network.ErrPortTaken) || !strings.Contains(err.Error(), asked.String()) {
				t.Errorf("%s: %v", asked, err)
			}
		}
	}
}
