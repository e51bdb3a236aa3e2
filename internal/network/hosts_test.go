package network

import (
	"errors"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestParseHosts(t *testing.T) {
	lines, err := ParseHosts([]string{"db:192.0.2.1", "v6:2001:db8::1", "b:[::1]", "h:host-gateway", "e=192.0.2.3", "v=2001:db8::2", "g=host-gateway", "m;n:192.0.2.4", "o;p=::2"})
	if got := strings.Join(lines, "|"); err != nil || got != "192.0.2.1\tdb|2001:db8::1\tv6|::1\tb|10.0.2.2\th|192.0.2.3\te|2001:db8::2\tv|10.0.2.2\tg|192.0.2.4\tm|192.0.2.4\tn|::2\to|::2\tp" {
		t.Errorf("%q, %v", got, err)
	}
	for _, v := range []string{"", "db", "db:", "db:x", ":192.0.2.1", "a b:192.0.2.1", "a\n:192.0.2.1", "db:fe80::1%eth0", "db=", "=192.0.2.1", "a;:192.0.2.1", ";a:192.0.2.1", "a;b"} {
		if lines, err := ParseHosts([]string{v}); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%q: %q, %v; want ErrInvalid", v, lines, err)
		}
	}
}
