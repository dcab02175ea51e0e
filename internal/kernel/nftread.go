package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
)

// nfDrop is NF_DROP (linux/netfilter.h).
const nfDrop = 0

// chainID names a chain within our tables.
type chainID struct {
	family uint8
	name   string
}

// chain is what the kernel says of one chain.
type chain struct {
	hooked   bool // a base chain
	hook     uint32
	priority int32
	typ      string
	policy   uint32
	devs     []string
	rules    uint32
}

// isolates says whether a chain drops everything at the ingress of a bridge.
func (c chain) isolates(bridge string) bool {
	return c.hooked && c.hook == unix.NF_NETDEV_INGRESS && c.policy == nfDrop && c.rules == 0 &&
		len(c.devs) == 1 && c.devs[0] == bridge
}

// base is what stands of our tables, without rules and elements.
type base struct {
	tables  map[uint8]uint32 // family -> flags
	chains  map[chainID]chain
	sets    bool // all four
	counter bool
	packets uint64 // of the counter
}

// nfgen appends a struct nfgenmsg.
func (m *batch) nfgen(family uint8, resID uint16) {
	m.raw(family, unix.NFNETLINK_V0)
	m.b = binary.BigEndian.AppendUint16(m.b, resID)
}

func nftType(msg uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | msg }

// nftDump dumps one kind of objects of a family and hands out their
// attributes.
func nftDump(s *sock, msg uint16, family uint8, each func([]byte) error, body func(*batch)) error {
	return s.dump(nftType(msg), func(a answer) error {
		if len(a.body) < 4 {
			return errTruncated
		}
		return each(a.body[4:])
	}, func(m *batch) {
		m.nfgen(family, 0)
		if body != nil {
			body(m)
		}
	})
}

// readBase reads tables, chains, sets and the counter. Absent ones are no
// error. Reads are not one transaction; readNft checks the generation.
func readBase(s *sock) (*base, error) {
	b := &base{tables: map[uint8]uint32{}, chains: map[chainID]chain{}}
	for _, fam := range []uint8{unix.NFPROTO_INET, unix.NFPROTO_BRIDGE, unix.NFPROTO_NETDEV} {
		err := nftDump(s, unix.NFT_MSG_GETTABLE, fam, func(d []byte) error {
			var name string
			var flags uint32
			err := eachAttr(d, func(typ uint16, d []byte) {
				switch typ {
				case unix.NFTA_TABLE_NAME:
					name = str0(d)
				case unix.NFTA_TABLE_FLAGS:
					flags = be32Attr(d)
				}
			})
			if name == tableName {
				b.tables[fam] = flags
			}
			return err
		}, nil)
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("dump tables: %w", err)
		}
		if err := b.readChains(s, fam); err != nil && !gone(err) {
			return nil, fmt.Errorf("dump chains: %w", err)
		}
	}
	return b, errors.Join(b.readSets(s), b.readCounter(s))
}

func (b *base) readChains(s *sock, fam uint8) error {
	return nftDump(s, unix.NFT_MSG_GETCHAIN, fam, func(d []byte) error {
		var c chain
		var table, name string
		var nested error
		err := eachAttr(d, func(typ uint16, d []byte) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				table = str0(d)
			case unix.NFTA_CHAIN_NAME:
				name = str0(d)
			case unix.NFTA_CHAIN_TYPE:
				c.typ = str0(d)
			case unix.NFTA_CHAIN_POLICY:
				c.policy = be32Attr(d)
			case unix.NFTA_CHAIN_USE:
				c.rules = be32Attr(d)
			case unix.NFTA_CHAIN_HOOK:
				c.hooked = true
				nested = c.parseHook(d)
			}
		})
		if table == tableName {
			b.chains[chainID{fam, name}] = c
		}
		return errors.Join(err, nested)
	}, nil)
}

func (c *chain) parseHook(b []byte) error {
	const hookDevs = 4 // NFTA_HOOK_DEVS, which newer kernels send instead of NFTA_HOOK_DEV
	var nested error
	err := eachAttr(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.NFTA_HOOK_HOOKNUM:
			c.hook = be32Attr(d)
		case unix.NFTA_HOOK_PRIORITY:
			c.priority = int32(be32Attr(d))
		case unix.NFTA_HOOK_DEV:
			if len(c.devs) == 0 {
				c.devs = []string{str0(d)}
			}
		case hookDevs:
			c.devs = nil
			nested = eachAttr(d, func(_ uint16, d []byte) { c.devs = append(c.devs, str0(d)) })
		}
	})
	return errors.Join(err, nested)
}

func (b *base) readSets(s *sock) error {
	found := 0
	for _, fam := range []uint8{unix.NFPROTO_INET, unix.NFPROTO_BRIDGE} {
		err := nftDump(s, unix.NFT_MSG_GETSET, fam, func(d []byte) error {
			var table, name string
			err := eachAttr(d, func(typ uint16, d []byte) {
				switch typ {
				case unix.NFTA_SET_TABLE:
					table = str0(d)
				case unix.NFTA_SET_NAME:
					name = str0(d)
				}
			})
			if table == tableName && (name == setVTEP4 || name == setVTEP6 || name == setMember || name == setMark) {
				found++
			}
			return err
		}, nil)
		if err != nil && !gone(err) {
			return fmt.Errorf("dump sets: %w", err)
		}
	}
	b.sets = found == 4
	return nil
}

func (b *base) readCounter(s *sock) error {
	err := nftDump(s, unix.NFT_MSG_GETOBJ, unix.NFPROTO_INET, func(d []byte) error {
		var table, name string
		var packets uint64
		var nested error
		err := eachAttr(d, func(typ uint16, d []byte) {
			switch typ {
			case unix.NFTA_OBJ_TABLE:
				table = str0(d)
			case unix.NFTA_OBJ_NAME:
				name = str0(d)
			case unix.NFTA_OBJ_DATA:
				nested = eachAttr(d, func(typ uint16, d []byte) {
					if typ == unix.NFTA_COUNTER_PACKETS && len(d) == 8 {
						packets = binary.BigEndian.Uint64(d)
					}
				})
			}
		})
		if table == tableName && name == counterName {
			b.counter, b.packets = true, packets
		}
		return errors.Join(err, nested)
	}, nil)
	if err != nil && !gone(err) {
		return fmt.Errorf("dump objects: %w", err)
	}
	return nil
}

func be32Attr(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// generation is the number of the ruleset, which each transaction raises.
func generation(s *sock) (id uint32, err error) {
	err = s.one(nftType(unix.NFT_MSG_GETGEN), 0, func(a answer) {
		if len(a.body) < 4 {
			return
		}
		_ = eachAttr(a.body[4:], func(typ uint16, d []byte) {
			if typ == unix.NFTA_GEN_ID {
				id = be32Attr(d)
			}
		})
	}, func(m *batch) { m.nfgen(unix.NFPROTO_UNSPEC, 0) })
	return id, err
}

// ruleset is what one generation of the ruleset says of us. Only the counter
// goes on without a new one.
type ruleset struct {
	gen      uint32
	bridges  map[string]int32 // for which isolated was read: a chain stays behind when its bridge goes, in the same generation
	stands   bool             // the base
	isolated map[string]bool  // by bridge
	elements []hoststate.Key
}

// readNft reads everything of our tables within one generation, most of it
// only if that is not the one that was read last: it is twenty requests, and
// links are read at each doorbell.
func (k *Kernel) readNft(st *hoststate.State) error {
	bridges := map[string]int32{}
	for _, l := range st.Links {
		if l.Kind == hoststate.LinkBridge {
			bridges[l.Name] = l.Index
		}
	}
	gen, err := generation(k.nfr)
	if err != nil {
		return fmt.Errorf("generation: %w", err)
	}
	rs := k.rulesetRead.Load()
	if rs == nil || rs.gen != gen || !maps.Equal(rs.bridges, bridges) {
		if rs, err = k.readRuleset(gen, bridges); err != nil {
			return err
		}
		k.rulesetRead.Store(rs)
	}
	var b base
	if err := b.readCounter(k.nfr); err != nil {
		return err
	}
	st.Base = st.Base && rs.stands && b.counter
	programs, err := k.programs()
	if err != nil {
		return err
	}
	taken, err := programs.VTEPs()
	if err != nil {
		return fmt.Errorf("read VTEPs: %w", err)
	}
	// The source check is first; the rule drops what it let pass.
	st.Strangers = b.packets + st.Drops[hoststate.DropKey{Reason: hoststate.DropVTEP}]
	for i := range st.Links {
		l := &st.Links[i]
		l.Isolated = l.Kind == hoststate.LinkBridge && rs.isolated[l.Name]
	}
	for _, row := range rs.elements {
		st.Rows[row] = hoststate.Val{}
		if row.Table == hoststate.TableVTEP && !taken[row.IP] {
			st.Rows[row] = hoststate.Val{Flags: hoststate.Half}
		}
	}
	return nil
}

func (k *Kernel) readRuleset(gen uint32, bridges map[string]int32) (*ruleset, error) {
	rs := &ruleset{gen: gen, bridges: bridges, isolated: map[string]bool{}}
	b, err := readBase(k.nfr)
	if err != nil {
		return nil, err
	}
	if rs.stands, err = k.baseStands(b); err != nil {
		return nil, err
	}
	for name := range bridges {
		rs.isolated[name] = b.tables[unix.NFPROTO_NETDEV] == 0 && b.chains[chainID{unix.NFPROTO_NETDEV, name}].isolates(name)
	}
	for _, set := range []string{setVTEP4, setVTEP6, setMember, setMark} {
		err := eachElement(k.nfr, set, func(key []byte) {
			if row, ok := elementRow(set, key); ok {
				rs.elements = append(rs.elements, row)
			}
		})
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("dump set %s: %w", set, err)
		}
	}
	after, err := generation(k.nfr)
	if err != nil {
		return nil, fmt.Errorf("generation: %w", err)
	}
	if after != gen {
		return nil, errInterrupted
	}
	return rs, nil
}

// readMembers lists the set of member ports.
func readMembers(s *sock) (members []int32, err error) {
	err = eachElement(s, setMember, func(key []byte) { members = append(members, int32(u32Attr(key))) })
	return members, err
}

// setFamily is the family of the table that holds a set of ours.
func setFamily(set string) uint8 {
	if set == setMember {
		return unix.NFPROTO_BRIDGE
	}
	return unix.NFPROTO_INET
}

// eachElement dumps the keys of one set; ENOENT if set or table are absent.
func eachElement(s *sock, set string, f func(key []byte)) error {
	return nftDump(s, unix.NFT_MSG_GETSETELEM, setFamily(set), func(d []byte) error {
		var all error
		err := eachAttr(d, func(typ uint16, d []byte) {
			if typ == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				all = eachAttr(d, func(_ uint16, elem []byte) { all = errors.Join(all, elementKey(elem, f)) })
			}
		})
		return errors.Join(err, all)
	}, func(m *batch) {
		m.str(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
		m.str(unix.NFTA_SET_ELEM_LIST_SET, set)
	})
}

func elementKey(elem []byte, f func([]byte)) error {
	var nested error
	err := eachAttr(elem, func(typ uint16, d []byte) {
		if typ == unix.NFTA_SET_ELEM_KEY {
			nested = eachAttr(d, func(typ uint16, d []byte) {
				if typ == unix.NFTA_DATA_VALUE {
					f(d)
				}
			})
		}
	})
	return errors.Join(err, nested)
}
