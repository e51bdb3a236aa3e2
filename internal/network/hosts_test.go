package network

import (
	"errors"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestParseHosts(t *testing.T) {
	lines, err := ParseHosts([]string{"db:192.0.2.1", "v6:2001:db8::1", "b:[::1]", "h:host-gateway"})
	if got := strings.Join(lines, "|"); err != nil || got != "192.0.2.1\tdb|2001:db8::1\tv6|::1\tb|10.0.2.2\th" {
		t.Errorf("%q, %v", got, err)
	}
	for _, v := range []string{"", "db", "db:", "db:x", ":192.0.2.1", "a b:192.0.2.1", "a\n:192.0.2.1", "db:fe80::1%eth0"} {
		if lines, err := ParseHosts([]string{v}); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%q: %q, %v; want ErrInvalid", v, lines, err)
		}
	}
}
