package bridge

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Rules of iptables may be nftables' own, or legacy ones, which nftables does not
// show: those are asked for by the program that has made them (iptables(8),
// xtables-legacy(8)).

// legacyTables lists the legacy tables that there are.
const legacyTables = "/proc/net/ip_tables_names"

const legacyTimeout = 5 * time.Second

// legacyDrop finds legacy rules that drop what they do not know, as foreignDrop
// does; empty: there are none.
func legacyDrop() string {
	tables, err := os.ReadFile(legacyTables)
	if err != nil || !slices.Contains(strings.Fields(string(tables)), "filter") {
		return ""
	}
	rules, err := legacyRules()
	switch {
	case err != nil:
		return fmt.Sprintf("the kernel has rules of legacy iptables, and whether they keep VMs on %s from the world cannot be known (%v): install iptables, or use --network usernet", LinkName, err)
	case legacyRefuses(rules):
		return dropped("FORWARD", "filter of legacy iptables")
	}
	return ""
}

// legacyRules is what iptables -S prints.
func legacyRules() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), legacyTimeout)
	defer cancel()
	for _, name := range []string{"iptables-legacy", "iptables"} {
		path, err := exec.LookPath(name)
		if err != nil {
			if path, err = exec.LookPath("/usr/sbin/" + name); err != nil {
				continue
			}
		}
		if version, err := exec.CommandContext(ctx, path, "--version").Output(); err != nil || strings.Contains(string(version), "nf_tables") {
			continue
		}
		out, err := exec.CommandContext(ctx, path, "--wait", "-S").Output()
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		return string(out), nil
	}
	return "", fmt.Errorf("iptables-legacy is not installed")
}

// legacyRefuses reports whether the chain FORWARD lets nothing pass that none of its
// rules accepts, and no rule is about the bridge.
func legacyRefuses(rules string) bool {
	refuses, settled := false, false
	for line := range strings.Lines(rules) {
		f := strings.Fields(line)
		switch {
		case slices.Contains(f, LinkName):
			return false
		case len(f) < 3 || f[1] != "FORWARD" || settled:
		case f[0] == "-P":
			refuses = f[2] == "DROP"
		case f[2] == "-j" && len(f) > 3: // for all that comes to it
			settled = f[3] == "ACCEPT" || f[3] == "DROP" || f[3] == "REJECT"
			if settled {
				refuses = f[3] != "ACCEPT"
			}
		}
	}
	return refuses
}
