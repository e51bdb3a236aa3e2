package bridge

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// This file spells parts of rules. Each works in register 1 and says in its
// comment what nft(8) calls it.

type exprs = []expr.Any

func rule(parts ...exprs) exprs {
	var all exprs
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func verdict(k expr.VerdictKind) exprs { return exprs{&expr.Verdict{Kind: k}} }

func accept() exprs { return verdict(expr.VerdictAccept) }
func drop() exprs   { return verdict(expr.VerdictDrop) }

func jump(chain string) exprs { return exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

// reject answers that the destination may not be reached: "reject with icmpx
// admin-prohibited", and a reset for TCP.
func reject() exprs {
	return exprs{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}

func equals(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func notEquals(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }

// linkName is a name as registers hold it, 16 bytes.
func linkName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func iif(name string) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equals(linkName(name))}
}

func notIif(name string) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, notEquals(linkName(name))}
}

func oif(name string) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, equals(linkName(name))}
}

func notOif(name string) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, notEquals(linkName(name))}
}

// field is where an address lies in its header.
type field int

const (
	saddr field = iota
	daddr
)

func (f field) load(v6 bool) *expr.Payload {
	p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	if v6 {
		p.Offset, p.Len = 8, 16
	}
	if f == daddr {
		p.Offset += p.Len
	}
	return p
}

// family is "meta nfproto ipv4" or ipv6.
func family(v6 bool) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equals([]byte{nfproto(v6)})}
}

func nfproto(v6 bool) byte {
	if v6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// addr is "ip saddr ADDR", with the family's own match before it.
func (f field) addr(a netip.Addr) exprs {
	return append(family(a.Is6()), f.load(a.Is6()), equals(a.AsSlice()))
}

func (f field) notAddr(a netip.Addr) exprs {
	return append(family(a.Is6()), f.load(a.Is6()), notEquals(a.AsSlice()))
}

// within is "ip saddr PREFIX".
func (f field) within(p netip.Prefix) exprs {
	return append(family(p.Addr().Is6()), f.masked(p, expr.CmpOpEq)...)
}

// beyond is "ip saddr != PREFIX".
func (f field) beyond(p netip.Prefix) exprs {
	return append(family(p.Addr().Is6()), f.masked(p, expr.CmpOpNeq)...)
}

func (f field) masked(p netip.Prefix, op expr.CmpOp) exprs {
	size := p.Addr().BitLen() / 8
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return exprs{
		f.load(p.Addr().Is6()),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// in is "ip daddr @SET".
func (f field) in(s *nftables.Set, v6 bool) exprs {
	return append(family(v6), f.load(v6), &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID})
}

// note is "update @SET { ip daddr }", for an address that was loaded before.
func note(s *nftables.Set) exprs {
	return exprs{&expr.Dynset{SrcRegKey: 1, SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_UPDATE}}
}

// protocol is "meta l4proto PROTOCOL".
func protocol(n byte) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals([]byte{n})}
}

// dport is "th dport PORT".
func dport(port uint16) exprs {
	return exprs{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equals(binary.BigEndian.AppendUint16(nil, port)),
	}
}

// local is "fib daddr type local".
func local() exprs {
	return exprs{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		equals(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}
}

// dnatted is the bit of "ct status dnat" (IPS_DST_NAT).
const dnatted = 1 << 5

// ct is "ct KEY BITS": one of the bits is set; with not, none.
func ct(key expr.CtKey, bits uint32, not bool) exprs {
	op := expr.CmpOpNeq
	if not {
		op = expr.CmpOpEq
	}
	return exprs{
		&expr.Ct{Register: 1, Key: key},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
	}
}

func state(bits uint32) exprs { return ct(expr.CtKeySTATE, bits, false) }

// nat is "dnat to ADDR[:PORT]" or "snat to ADDR"; port 0: it stays.
func nat(t expr.NATType, to netip.Addr, port uint16) exprs {
	n := &expr.NAT{Type: t, Family: uint32(nfproto(to.Is6())), RegAddrMin: 1}
	e := exprs{&expr.Immediate{Register: 1, Data: to.AsSlice()}}
	if port != 0 {
		n.RegProtoMin = 2
		e = append(e, &expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, port)})
	}
	return append(e, n)
}

func masquerade() exprs { return exprs{&expr.Masq{}} }

// clampMSS is "tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu":
// no segment is larger than the way it goes. The kernel only makes it smaller.
func clampMSS() exprs {
	return rule(protocol(unix.IPPROTO_TCP), exprs{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x06}, Xor: []byte{0}},
		equals([]byte{0x02}),
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	})
}

// chains of a table, added with their rules.
type chains struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func (c chains) base(name string, t nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority, policy nftables.ChainPolicy) *nftables.Chain {
	return c.conn.AddChain(&nftables.Chain{Name: name, Table: c.table, Type: t, Hooknum: hook, Priority: prio, Policy: &policy})
}

func (c chains) add(to *nftables.Chain, parts ...exprs) {
	c.conn.AddRule(&nftables.Rule{Table: c.table, Chain: to, Exprs: rule(parts...)})
}
