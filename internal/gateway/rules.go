package gateway

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

// tableName is the one table of a gateway's namespace that is ours.
const tableName = "culvert"

// chain is a chain with its rules.
type chain struct {
	nftables.Chain
	rules [][]expr.Any
}

// chains are the rules of a gateway. What no rule accepts is dropped: from
// outside comes what was asked for from inside, and what an address that leads
// inside was declared for; nothing goes from one network into another, for that
// is for policies and not for a way out.
func chains(s *Spec) []*chain {
	drop, accept := nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	in := &chain{Chain: nftables.Chain{Name: "arriving", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest, Policy: &accept}}
	out := &chain{Chain: nftables.Chain{Name: "leaving", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: &accept}}
	across := &chain{Chain: nftables.Chain{Name: "across", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop}}
	own := &chain{Chain: nftables.Chain{Name: "own", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop}}

	for _, f := range s.Floating {
		in.add(device(expr.MetaKeyIIFNAME, upName), address(f.Outside, dstAddr), translate(expr.NATTypeDestNAT, f.Inside, 0))
		out.add(device(expr.MetaKeyOIFNAME, upName), address(f.Inside, srcAddr), translate(expr.NATTypeSourceNAT, f.Outside, 0))
	}
	for _, f := range s.Forwards {
		in.add(device(expr.MetaKeyIIFNAME, upName), address(f.Outside, dstAddr), port(f.Protocol, f.Port), translate(expr.NATTypeDestNAT, f.Inside, f.ToPort))
	}
	across.add(connection(expr.CtKeySTATE, stateInvalid), verdict(expr.VerdictDrop))
	across.add(connection(expr.CtKeySTATE, stateKnown), verdict(expr.VerdictAccept))
	for _, l := range s.Legs {
		for _, p := range l.Inside {
			across.add(device(expr.MetaKeyIIFNAME, innerName(l.VNI)), within(p, srcAddr), device(expr.MetaKeyOIFNAME, upName), verdict(expr.VerdictAccept))
			if p.Addr().Is4() {
				out.source(s, p)
			}
		}
	}
	across.add(device(expr.MetaKeyIIFNAME, upName), connection(expr.CtKeySTATUS, statusDNAT), verdict(expr.VerdictAccept))
	own.add(connection(expr.CtKeySTATE, stateKnown), verdict(expr.VerdictAccept))
	own.add(icmp(unix.NFPROTO_IPV4, unix.IPPROTO_ICMP, 8), verdict(expr.VerdictAccept)) // echo request
	for _, t := range []byte{128, 135, 136} {                                           // echo request; neighbour solicitation and advertisement
		own.add(icmp(unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6, t), verdict(expr.VerdictAccept))
	}
	return []*chain{in, out, across, own}
}

// source adds the rules by which IPv4 guests of a prefix send from an address
// outside: always the same one for the same guest.
func (c *chain) source(s *Spec, p netip.Prefix) {
	g := overlay.Gateway{Addresses: s.Addresses}
	pool := s.SNAT
	if len(pool) == 0 {
		pool = []netip.Addr{g.Own(true)}
	}
	for i, a := range pool {
		if !a.IsValid() {
			continue // no IPv4 outside
		}
		match := [][]expr.Any{device(expr.MetaKeyOIFNAME, upName), within(p, srcAddr)}
		if len(pool) > 1 {
			match = append(match, share(uint32(len(pool)), uint32(i)))
		}
		c.add(append(match, translate(expr.NATTypeSourceNAT, a, 0))...)
	}
}

func (c *chain) add(parts ...[]expr.Any) { c.rules = append(c.rules, slices.Concat(parts...)) }

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func equal(b []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }

func device(key expr.MetaKey, name string) []expr.Any {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(b)}
}

// Which address of a header.
const (
	srcAddr = iota
	dstAddr
)

// load loads an address of packets of a family: RFC 791 section 3.1, RFC 8200
// section 3.
func load(v4 bool, which int) []expr.Any {
	family, offset, size := byte(unix.NFPROTO_IPV6), 8, 16
	if v4 {
		family, offset, size = unix.NFPROTO_IPV4, 12, 4
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{family}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(offset + which*size), Len: uint32(size)},
	}
}

func address(a netip.Addr, which int) []expr.Any {
	return append(load(a.Is4(), which), equal(a.AsSlice()))
}

func within(p netip.Prefix, which int) []expr.Any {
	mask, none := ipNet(p).Mask, make([]byte, len(p.Addr().AsSlice()))
	return append(load(p.Addr().Is4(), which),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: none}, equal(p.Masked().Addr().AsSlice()))
}

func port(protocol uint8, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{protocol}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, equal(binary.BigEndian.AppendUint16(nil, port)),
	}
}

func icmp(family, protocol, typ byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{family}),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{protocol}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, equal([]byte{typ}),
	}
}

// Bits of a connection's state and status (nf_conntrack_common.h).
const (
	stateInvalid = 1 << 0
	stateKnown   = 1<<1 | 1<<2 // established, related
	statusDNAT   = 1 << 5
)

func connection(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// share takes, of IPv4 packets, the i-th of n equal parts by their source.
func share(n, i uint32) []expr.Any {
	return append(load(true, srcAddr),
		&expr.Hash{SourceRegister: 1, DestRegister: 1, Length: 4, Modulus: n, Seed: 1, Type: expr.HashTypeJenkins},
		equal(binary.NativeEndian.AppendUint32(nil, i)))
}

// translate changes the source or destination of a connection; to is its new
// port, 0: as it is.
func translate(typ expr.NATType, a netip.Addr, to uint16) []expr.Any {
	nat := &expr.NAT{Type: typ, Family: unix.NFPROTO_IPV6, RegAddrMin: 1}
	if a.Is4() {
		nat.Family = unix.NFPROTO_IPV4
	}
	out := []expr.Any{&expr.Immediate{Register: 1, Data: a.AsSlice()}}
	if to != 0 {
		nat.RegProtoMin = 2
		out = append(out, &expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to)})
	}
	return append(out, nat)
}

// ensureRules writes the rules if they are not those that stand, or if the
// table was changed by somebody else, in one transaction. It returns what
// stands.
func ensureRules(r *room, s *Spec, stand string) (string, error) {
	want := fmt.Sprint(s.Addresses, s.SNAT, s.Floating, s.Forwards, s.Legs)
	c, err := nftables.New(nftables.WithNetNSFd(r.fd))
	if err != nil {
		return "", err
	}
	rules := chains(s)
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	if stand == want && whole(c, table, rules) {
		return stand, nil
	}
	c.AddTable(table) // so that there is one to delete
	c.DelTable(table)
	c.AddTable(table)
	for _, ch := range rules {
		ch.Table = table
		c.AddChain(&ch.Chain)
		for _, exprs := range ch.rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: &ch.Chain, Exprs: exprs})
		}
	}
	if err := c.Flush(); err != nil {
		return "", fmt.Errorf("write nftables: %w", err)
	}
	return want, nil
}

// whole reports whether every chain of the table is there with as many rules as
// were written.
func whole(c *nftables.Conn, table *nftables.Table, rules []*chain) bool {
	for _, ch := range rules {
		have, err := c.GetRules(table, &ch.Chain)
		if err != nil || len(have) != len(ch.rules) {
			return false
		}
	}
	return true
}
