package network

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestParseEgress(t *testing.T) {
	for _, tt := range []struct {
		values     []string
		names, no  []string
		addrs, bad []string
	}{
		{nil, []string{"example.org"}, nil, []string{"192.0.2.1", "2001:db8::1"}, nil},
		{[]string{"all"}, []string{"example.org"}, nil, []string{"192.0.2.1"}, nil},
		{[]string{"none"}, nil, []string{"example.org", "localhost"}, nil, []string{"192.0.2.1", "::1"}},
		{[]string{"192.0.2.7/24", "2001:db8::/32"}, nil, []string{"example.org"}, []string{"192.0.2.200", "::ffff:192.0.2.1", "2001:db8:1::1"}, []string{"192.0.3.1", "2001:db9::1"}},
		{[]string{"192.0.2.7"}, nil, nil, []string{"192.0.2.7"}, []string{"192.0.2.8"}},
		{[]string{"Example.org."}, []string{"example.ORG"}, []string{"www.example.org", "badexample.org", "example.org.evil"}, nil, []string{"192.0.2.1"}},
		{[]string{"*.example.org"}, []string{"a.b.example.org"}, []string{"example.org", "xexample.org"}, nil, nil},
	} {
		e, err := ParseEgress(tt.values)
		if err != nil {
			t.Errorf("%q: %v", tt.values, err)
			continue
		}
		for _, n := range tt.names {
			if !e.AllowsName(n) {
				t.Errorf("%q does not allow %s", tt.values, n)
			}
		}
		for _, n := range tt.no {
			if e.AllowsName(n) {
				t.Errorf("%q allows %s", tt.values, n)
			}
		}
		for _, a := range tt.addrs {
			if !e.AllowsAddr(netip.MustParseAddr(a)) {
				t.Errorf("%q does not allow %s", tt.values, a)
			}
		}
		for _, a := range tt.bad {
			if e.AllowsAddr(netip.MustParseAddr(a)) {
				t.Errorf("%q allows %s", tt.values, a)
			}
		}
	}
}

func TestParseEgressErrors(t *testing.T) {
	for _, values := range [][]string{
		{""},
		{"none", "192.0.2.1"},
		{"all", "none"},
		{"300.1.1.1"},
		{"192.0.2.0/33"},
		{"*."},
		{"*"},
		{"exa mple.org"},
		{"-a.org"},
		{"a..b"},
		{"http://example.org"},
		{"fe80::1%eth0"},
		{strings.Repeat("a", 64) + ".org"},
		strings.Split(strings.TrimSuffix(strings.Repeat("192.0.2.1,", maxEgress+1), ","), ","),
	} {
		if e, err := ParseEgress(values); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%.40q: %v, %v; want ErrInvalid", values, e, err)
		}
	}
}

// A policy never allows a name that is not below one of its own.
func TestEgressNamesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		label := rapid.StringMatching(`[a-z][a-z0-9]{0,5}`)
		d, n := label.Draw(t, "domain")+".example", label.Draw(t, "name")
		e, err := ParseEgress([]string{"*." + d})
		if err != nil {
			t.Fatal(err)
		}
		if !e.AllowsName(n+"."+d) || e.AllowsName(n+d) || e.AllowsName(d+"."+n) || e.AllowsName(d) {
			t.Fatalf("*.%s and %s", d, n)
		}
	})
}
