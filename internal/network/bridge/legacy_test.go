package bridge

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/network/nettest"
)

func TestLegacyRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, rules string
		want        bool
	}{
		{"nothing", "", false},
		{"accept", "-P INPUT DROP\n-P FORWARD ACCEPT\n-A FORWARD -s 203.0.113.0/24 -j DROP\n", false},
		{"Docker", "-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\n", true},
		{"Docker, and the bridge", "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -i fcvmbr0 -j ACCEPT\n", false},
		{"the rest", "-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n", true},
		{"all accepted", "-P FORWARD DROP\n-A FORWARD -j ACCEPT\n", false},
		{"nothing is accepted", "-P FORWARD ACCEPT\n-A FORWARD -j DROP\n-A FORWARD -j ACCEPT\n", true},
		{"another bridge", "-P FORWARD DROP\n-A FORWARD -i fcvmbr01 -j ACCEPT\n", true},
		{"cut off", "-P FORWARD\n-A FORWARD -j\n-P\n", false},
	} {
		if got := legacyRefuses(tt.rules); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

// Rules of legacy iptables are found, though nftables does not show them.
func TestBlockedByLegacyRules(t *testing.T) {
	nettest.Need(t)
	const program = "/usr/sbin/iptables-legacy"
	if !exists(program) {
		t.Skip("iptables-legacy is not installed (Debian package iptables)")
	}
	if out, err := exec.Command(program, "-P", "FORWARD", "DROP").CombinedOutput(); err != nil {
		t.Skipf("this kernel has no legacy iptables: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command(program, "-P", "FORWARD", "ACCEPT").Run() })
	if why := New(netip.Prefix{}).Blocked(); !strings.Contains(why, "FORWARD") || !strings.Contains(why, "legacy") {
		t.Errorf("blocked: %q", why)
	}
	if out, err := exec.Command(program, "-I", "FORWARD", "-i", LinkName, "-j", "ACCEPT").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command(program, "-F", "FORWARD").Run() })
	if why := New(netip.Prefix{}).Blocked(); why != "" {
		t.Errorf("blocked, though the bridge is allowed: %s", why)
	}
}
