package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/network"
)

// Chains of the host's table. Each VM has a chain of its own, vm-ID, with the
// translations of its published ports.
const (
	chainPublished = "published"
	vmChainPrefix  = "vm-"
)

func hostTable() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

// present reports whether there is a bridge on the host, by one look at a file: every
// command asks, and netlink may take tens of milliseconds to answer. The table goes
// before the bridge; one that is left because somebody else has removed the bridge
// does nothing, and goes when the next VM is attached.
func present() bool {
	_, err := os.Stat(filepath.Join(sysctlDir, "ipv4/conf", LinkName))
	return err == nil
}

func hasTable(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables' tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == TableName {
			return true, nil
		}
	}
	return false, nil
}

// makeTable makes the host's table for a bridge.
func makeTable(h *host) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if ok, err := hasTable(conn); err != nil || ok {
		return err
	}
	c := chains{conn, conn.AddTable(hostTable())}
	published := conn.AddChain(&nftables.Chain{Name: chainPublished, Table: c.table})
	pre := c.base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	c.add(pre, local(), jump(published.Name))
	// What the host itself sends to its loopback is the supervisors' sockets'.
	out := c.base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	c.add(out, daddr.beyond(netip.MustParsePrefix("127.0.0.0/8")), local(), jump(published.Name))
	c.add(out, daddr.notAddr(netip.IPv6Loopback()), local(), jump(published.Name))
	post := c.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	fwd := c.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	for _, p := range []netip.Prefix{h.subnet, h.subnet6} {
		if !p.IsValid() {
			continue
		}
		c.add(post, saddr.within(p), notOif(LinkName), masquerade())
		// A VM that reaches another one by a published port has to be
		// answered by the host, not by its neighbour.
		c.add(post, saddr.within(p), oif(LinkName), ct(expr.CtKeySTATUS, dnatted, false), masquerade())
	}
	// A client with an address of the network that every guest has inside would be
	// answered there. The host itself may have one.
	c.add(post, saddr.within(guest4), oif(LinkName), masquerade())
	for _, match := range []exprs{iif(LinkName), oif(LinkName)} {
		c.add(fwd, match, clampMSS())
	}
	// Others on the host's network reach published ports, and nothing else.
	c.add(fwd, oif(LinkName), notIif(LinkName), state(expr.CtStateBitNEW), ct(expr.CtKeySTATUS, dnatted, true), drop())
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make nftables' table %s (kernel modules nf_tables, nft_nat, nft_masq, nft_fib_inet): %w", TableName, err)
	}
	return nil
}

var linkLocal6 = netip.MustParsePrefix("fe80::/10")

// publish writes the chain of one VM's ports anew.
func publish(id string, ports []network.Port, to []netip.Addr) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := hostTable()
	known, err := vmChains(conn)
	if err != nil {
		return err
	}
	c := chains{conn, table}
	chain := &nftables.Chain{Name: vmChainPrefix + id, Table: table}
	if known[id] {
		conn.FlushChain(chain)
	} else {
		conn.AddChain(chain)
		c.add(&nftables.Chain{Name: chainPublished, Table: table}, jump(chain.Name))
	}
	for _, p := range ports {
		for _, a := range to {
			if a.Is6() == p.HostIP.Is6() {
				c.add(chain, portRule(p, a))
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("publish the VM's ports in nftables' table %s: %w", TableName, err)
	}
	return nil
}

func portRule(p network.Port, to netip.Addr) exprs {
	match := family(to.Is6())
	if !p.HostIP.IsUnspecified() {
		match = daddr.addr(p.HostIP)
	}
	if to.Is6() { // what comes from the link alone is passed on to no other
		match = append(match, saddr.beyond(linkLocal6)...)
	}
	n := byte(unix.IPPROTO_TCP)
	if p.Protocol == network.UDP {
		n = unix.IPPROTO_UDP
	}
	return rule(match, protocol(n), dport(p.HostPort), nat(expr.NATTypeDestNAT, to, p.GuestPort))
}

// vmChains lists the VMs that have a chain.
func vmChains(conn *nftables.Conn) (map[string]bool, error) {
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables' chains: %w", err)
	}
	ids := make(map[string]bool)
	for _, c := range all {
		if id, ok := strings.CutPrefix(c.Name, vmChainPrefix); ok && c.Table.Name == TableName {
			ids[id] = true
		}
	}
	return ids, nil
}

// dropDeadChains removes the chains of VMs that are gone.
func dropDeadChains(alive map[string]bool) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if ok, err := hasTable(conn); err != nil || !ok {
		return err
	}
	ids, err := vmChains(conn)
	if err != nil {
		return err
	}
	table := hostTable()
	rules, err := conn.GetRules(table, &nftables.Chain{Name: chainPublished, Table: table})
	if err != nil {
		return fmt.Errorf("list nftables' rules: %w", err)
	}
	changed := false
	for id := range ids {
		if alive[id] {
			continue
		}
		for _, r := range rules {
			if len(r.Exprs) == 1 && jumpsTo(r.Exprs[0], vmChainPrefix+id) {
				if err := conn.DelRule(r); err != nil {
					return err
				}
			}
		}
		chain := &nftables.Chain{Name: vmChainPrefix + id, Table: table}
		conn.FlushChain(chain)
		conn.DelChain(chain)
		changed = true
	}
	if !changed {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove chains of VMs that are gone: %w", err)
	}
	return nil
}

func jumpsTo(e expr.Any, chain string) bool {
	v, ok := e.(*expr.Verdict)
	return ok && v.Kind == expr.VerdictJump && v.Chain == chain
}

// tearDown removes table and bridge.
func tearDown() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if ok, err := hasTable(conn); err != nil {
		return err
	} else if ok {
		conn.DelTable(hostTable())
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("remove nftables' table %s: %w", TableName, err)
		}
	}
	l, err := netlink.LinkByName(LinkName)
	var absent netlink.LinkNotFoundError
	switch {
	case errors.As(err, &absent):
		return nil
	case err != nil:
		return fmt.Errorf("find %s: %w", LinkName, err)
	case l.Type() != "bridge":
		return nil // somebody else's
	}
	return removeLink(l)
}

// removeLink removes an interface, which may have gone by itself.
func removeLink(l netlink.Link) error {
	err := netlink.LinkDel(l)
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// foreignDrop finds rules of others that drop what they do not know: a base
// chain at the forward hook whose policy is drop, as Docker has it, or whose last
// rule refuses all that comes to it, as firewalld's, without a word of this bridge
// in its table.
func foreignDrop(conn *nftables.Conn) string {
	all, err := conn.ListChains()
	if err != nil {
		return ""
	}
	for _, c := range all {
		if c.Table.Name == TableName || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward ||
			c.Table.Family != nftables.TableFamilyINet && c.Table.Family != nftables.TableFamilyIPv4 ||
			!refuses(conn, c) || mentions(conn, all, c.Table) {
			continue
		}
		return dropped(c.Name, c.Table.Name)
	}
	return ""
}

func dropped(chain, table string) string {
	return fmt.Sprintf("the chain %s of the table %s drops what it does not know, so VMs on %s do not reach the world; allow them there "+
		"(with Docker: iptables -I DOCKER-USER -i %[3]s -j ACCEPT; iptables -I DOCKER-USER -o %[3]s -j ACCEPT; with firewalld: firewall-cmd --zone=trusted --add-interface=%[3]s), or use --network usernet",
		chain, table, LinkName)
}

// refuses reports whether a base chain lets nothing pass that none of its rules
// accepts.
func refuses(conn *nftables.Conn, c *nftables.Chain) bool {
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		return true
	}
	rules, err := conn.GetRules(c.Table, c)
	if err != nil || len(rules) == 0 {
		return false
	}
	refused := false
	for _, e := range rules[len(rules)-1].Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			refused = true
		case *expr.Verdict:
			refused = e.Kind == expr.VerdictDrop
		default:
			return false // it is for some packets only
		}
	}
	return refused
}

// mentions reports whether a table has a rule about the bridge.
func mentions(conn *nftables.Conn, all []*nftables.Chain, t *nftables.Table) bool {
	for _, c := range all {
		if c.Table.Name != t.Name || c.Table.Family != t.Family {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			continue
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if cmp, ok := e.(*expr.Cmp); ok && bytes.HasPrefix(cmp.Data, []byte(LinkName)) {
					return true
				}
			}
		}
	}
	return false
}
