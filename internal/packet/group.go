package packet

import (
	"encoding/binary"
	"net/netip"
)

const (
	igmpQuery    = 0x11
	igmpReport1  = 0x12
	igmpReport2  = 0x16
	igmpLeave    = 0x17
	igmpReport3  = 0x22
	recInclude   = 1 // RFC 3376 section 4.2.12, RFC 3810 section 5.2.12
	recExclude   = 2
	recToInclude = 3
	recToExclude = 4
	recAllow     = 5
	recBlock     = 6
)

// MostGroups bounds the groups that are read from one frame; FlagMore tells
// when there were more.
const MostGroups = 64

// Membership is one change that a group report tells of its sender.
type Membership struct {
	Group netip.Addr // a multicast address
	Join  bool
}

// Groups appends what the frame of a GroupReport joins and leaves, in its
// order, at most MostGroups. A list of sources counts as a join of the group,
// an empty one to include as a leave; that a source is blocked changes nothing
// here. Frames that are no reports append nothing.
func Groups(dst []Membership, frame []byte, wire int) []Membership {
	p, d := open(frame, wire)
	if d != Taken || p.typ != TypeIPv4 && p.typ != TypeIPv6 || p.network() != Taken {
		return dst
	}
	var f Fact
	switch p.proto {
	case protoIGMP:
		d = parseIGMP(&f, &p)
	case protoICMPv6:
		d = parseICMPv6(&f, &p)
	}
	if d != Taken || f.Kind != GroupReport {
		return dst
	}
	r := recordsOf(&p)
	for r.next() {
		dst = append(dst, r.now)
	}
	return dst
}

// records walks the group records of one report that parseIGMP or parseMLD has
// seen.
type records struct {
	b     []byte // from the first record on
	size  int    // of an address
	cut   bool
	n     int // records that the message says it has
	taken int
	one   bool // versions that report one group: join says which
	join  bool

	now  Membership
	more bool // ended before the last record
	bad  bool // a record is broken
}

func recordsOf(p *parts) records {
	b := p.body
	r := records{size: 4, cut: p.cut, n: 1, one: true}
	if p.proto == protoICMPv6 {
		r.size = 16
	}
	switch b[0] {
	case igmpReport3, icmpMLD2Report:
		r.one, r.n, r.b = false, int(binary.BigEndian.Uint16(b[6:])), b[8:]
	case icmpMLDReport, icmpMLDDone:
		r.b, r.join = b[8:], b[0] == icmpMLDReport
	default:
		r.b, r.join = b[4:], b[0] != igmpLeave
	}
	return r
}

// next sets now to the next change. When it ends, bad and more say why.
func (r *records) next() bool {
	for ; r.n > 0; r.n-- {
		if r.taken == MostGroups {
			r.more = true
			return false
		}
		if r.one {
			r.now, r.n, r.taken = Membership{r.addr(r.b), r.join}, 0, 1
			r.bad = !r.now.Group.IsMulticast()
			return !r.bad
		}
		size := 4 + r.size
		if len(r.b) >= size {
			size += int(r.b[1])*4 + int(binary.BigEndian.Uint16(r.b[2:]))*r.size
		}
		if len(r.b) < size {
			r.more, r.bad = r.cut, !r.cut
			return false
		}
		kind, sources, group := r.b[0], binary.BigEndian.Uint16(r.b[2:]), r.addr(r.b[4:])
		r.b = r.b[size:]
		r.taken++ // what says nothing counts too: it bounds the work
		switch kind {
		case recExclude, recToExclude:
			r.now = Membership{group, true}
		case recInclude, recToInclude:
			r.now = Membership{group, sources > 0}
		case recAllow:
			if sources == 0 {
				continue
			}
			r.now = Membership{group, true}
		default: // recBlock, and what RFC 3376 says to ignore
			continue
		}
		r.n--
		r.bad = !group.IsMulticast()
		return !r.bad
	}
	return false
}

func (r *records) addr(b []byte) netip.Addr {
	if r.size == 4 {
		return ip4(b[:4])
	}
	return ip6(b[:16])
}

// report checks every record.
func report(f *Fact, p *parts, short, group Drop) Drop {
	f.Kind, f.MAC = GroupReport, f.Src
	if unicast(p.from) {
		f.IP = p.from
	}
	r := recordsOf(p)
	for r.next() {
	}
	switch {
	case r.bad && r.now.Group.IsValid() && !r.now.Group.IsMulticast():
		return group
	case r.bad:
		return short
	case r.more:
		f.Flags |= FlagMore
	}
	return Taken
}

func parseIGMP(f *Fact, p *parts) Drop {
	b := p.body
	switch {
	case len(b) < 8:
		return IGMPShort
	case p.hops != 1:
		return IGMPTTL
	case !p.cut && ^fold(sum(0, b)) != 0:
		return IGMPChecksum
	}
	switch b[0] {
	case igmpQuery:
		f.Kind, f.MAC = GroupQuery, f.Src
		if unicast(p.from) {
			f.IP = p.from
		}
		return Taken
	case igmpReport1, igmpReport2, igmpLeave, igmpReport3:
		return report(f, p, IGMPShort, IGMPGroup)
	}
	return IGMPType
}

func parseMLD(f *Fact, p *parts) Drop {
	b := p.body
	least := 24 // RFC 2710 section 3
	if b[0] == icmpMLD2Report {
		least = 8
	}
	switch {
	case len(b) < least:
		return MLDShort
	case p.hops != 1:
		return MLDHopLimit
	case !p.cut && ^fold(sum(p.pseudo(protoICMPv6, len(b)), b)) != 0:
		return MLDChecksum
	case !p.alert:
		return MLDRouterAlert
	case !p.from.IsLinkLocalUnicast() && (b[0] == icmpMLDQuery || !p.from.IsUnspecified()):
		return MLDSource
	}
	if b[0] == icmpMLDQuery {
		f.Kind, f.MAC, f.IP = GroupQuery, f.Src, p.from
		return Taken
	}
	return report(f, p, MLDShort, MLDGroup)
}
