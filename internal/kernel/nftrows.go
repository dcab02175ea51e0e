package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
)

// Messages that open and close a transaction (linux/netfilter/nfnetlink.h).
const (
	nfnlBatchBegin = 0x10
	nfnlBatchEnd   = 0x11
)

// element is the set and the key of a row in nftables.
func element(k hoststate.Key) (set string, key []byte, err error) {
	switch {
	case k.Table == hoststate.TableMember:
		return setMember, native.AppendUint32(nil, uint32(k.Port)), nil
	case k.Table == hoststate.TableMark && k.IP.Is6():
		return setMark, k.IP.AsSlice(), nil
	case k.Table == hoststate.TableMark:
	case k.IP.Is4():
		return setVTEP4, k.IP.AsSlice(), nil
	case k.IP.Is6():
		return setVTEP6, k.IP.AsSlice(), nil
	}
	return "", nil, fmt.Errorf("address: %w", unix.EINVAL)
}

// elementRow is the opposite of element.
func elementRow(set string, key []byte) (hoststate.Key, bool) {
	if set == setMember {
		return hoststate.Key{Table: hoststate.TableMember, Port: int32(u32Attr(key))}, true
	}
	table := hoststate.TableVTEP
	if set == setMark {
		table = hoststate.TableMark
	}
	a, ok := netip.AddrFromSlice(key)
	return hoststate.Key{Table: table, IP: a}, ok
}

// applyElements writes a run of set elements in one transaction and, if that
// is refused as a whole because of one, each in its own. Then it reads the sets
// back.
func (k *Kernel) applyElements(res []hoststate.Result) {
	var good []*hoststate.Result
	for i := range res {
		if _, _, err := element(res[i].Op.Row.Key); err != nil {
			settle(&res[i], err)
			continue
		}
		good = append(good, &res[i])
	}
	whole := k.transaction(good) == nil
	if !whole && len(good) > 1 {
		for i := range good {
			k.transaction(good[i : i+1])
		}
	}
	for _, r := range good {
		if r.Class == hoststate.ClassOK && r.Op.Row.Key.Table == hoststate.TableMember {
			if err := k.isolatePort(r.Op.Row.Key.Port, r.Op.Kind == hoststate.OpDel); err != nil {
				settle(r, err)
			}
		}
	}
	for _, r := range good {
		k.vtepPrograms(r)
	}
	have := k.readElements(good)
	if whole {
		k.nextRuleset(have)
	}
	for _, r := range good {
		conclude(r)
	}
}

// transaction sends elements as one transaction and settles the results. The
// error is the first of any element, or the socket's.
func (k *Kernel) transaction(res []*hoststate.Result) error {
	if len(res) == 0 {
		return nil
	}
	errs := make([]error, len(res))
	first, err := k.nfw.elements(res, errs)
	for i, r := range res {
		switch {
		case errs[i] != nil:
			settle(r, errs[i])
		default:
			settle(r, err)
		}
	}
	return errors.Join(first, err)
}

// elements runs one nftables batch (linux/netfilter/nfnetlink.h). Every
// message asks for its acknowledgement; the kernel answers each, also when it
// takes none.
func (s *sock) elements(res []*hoststate.Result, errs []error) (refused, failed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return nil, err
	}
	begin := s.seq + 1
	s.seq += uint32(len(res)) + 2
	var m batch
	m.begin(nfnlBatchBegin, 0, begin)
	m.nfgen(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	m.end()
	for i, r := range res {
		set, key, _ := element(r.Op.Row.Key)
		msg, flags := uint16(unix.NFT_MSG_NEWSETELEM), uint16(unix.NLM_F_CREATE)
		if r.Op.Kind == hoststate.OpDel {
			msg, flags = unix.NFT_MSG_DELSETELEM, 0
		}
		m.begin(nftType(msg), flags|unix.NLM_F_ACK, begin+1+uint32(i))
		m.nfgen(setFamily(set), 0)
		m.str(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
		m.str(unix.NFTA_SET_ELEM_LIST_SET, set)
		m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
			m.nest(unix.NFTA_LIST_ELEM, func() {
				m.nest(unix.NFTA_SET_ELEM_KEY, func() { m.attr(unix.NFTA_DATA_VALUE, key) })
			})
		})
		m.end()
	}
	m.begin(nfnlBatchEnd, 0, begin+1+uint32(len(res)))
	m.nfgen(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	m.end()
	if err := s.send(m.b); err != nil {
		s.reset()
		return nil, fmt.Errorf("send: %w", err)
	}
	answers := 0
	err := s.receive(func(a answer) (bool, error) {
		if a.typ != unix.NLMSG_ERROR {
			return false, nil
		}
		code := a.code()
		i := int(a.seq - begin - 1)
		switch {
		case a.seq == begin:
			return true, code // the batch itself: commit refused
		case i < 0 || i >= len(res):
			return false, nil
		}
		errs[i] = code
		refused = errors.Join(refused, code)
		answers++
		return answers == len(res), nil
	})
	if err != nil {
		s.reset()
	}
	return refused, err
}

// isolatePort sets or clears the bridge port's isolation flag. A port that is
// not there, or is no port, or is no VM's, is left alone.
func (k *Kernel) isolatePort(index int32, on bool) error {
	l, err := getLink(k.write, index, "")
	switch {
	case errors.Is(err, errAbsent):
		return nil
	case err != nil:
		return err
	case l.Master == 0 || l.isoPort == on || l.Kind != hoststate.LinkOther:
		return nil
	}
	err = k.brport(index, portFlags{flood: l.Flood, learning: l.Learns, isolated: on})
	if errors.Is(err, errAbsent) {
		return nil
	}
	return err
}

// readElements reads back the sets that the results touch, and returns what is
// in them; of one that could not be read, nil.
func (k *Kernel) readElements(res []*hoststate.Result) map[string]map[hoststate.Key]bool {
	have := map[string]map[hoststate.Key]bool{}
	for _, r := range res {
		set, _, _ := element(r.Op.Row.Key)
		keys, ok := have[set]
		if !ok {
			keys = map[hoststate.Key]bool{}
			err := eachElement(k.nfw, set, func(b []byte) {
				if key, ok := elementRow(set, b); ok {
					keys[key] = true
				}
			})
			if err != nil {
				keys = nil
			}
			have[set] = keys
		}
		r.Have = hoststate.Val{}
		if r.Verified = keys != nil; r.Verified {
			r.Present = keys[r.Op.Row.Key] && k.programsTake(r)
		}
	}
	return have
}

// nextRuleset brings what was read of the ruleset up to date after one
// transaction of ours, which changed sets alone, if it was the only one since:
// each raises the generation by one, unless it changed nothing. Then it was
// another's that did.
func (k *Kernel) nextRuleset(have map[string]map[hoststate.Key]bool) {
	old := k.rulesetRead.Load()
	if old == nil {
		return
	}
	gen, err := generation(k.nfw)
	if err != nil || gen != old.gen+1 {
		return
	}
	rs := *old
	rs.gen, rs.elements = gen, nil
	stood, stands := 0, 0 // of the sets that were written
	same := true
	for _, key := range old.elements {
		set, _, err := element(key)
		switch keys := have[set]; {
		case err != nil:
		case keys == nil:
			rs.elements = append(rs.elements, key)
		default:
			stood++
			same = same && keys[key]
		}
	}
	for _, keys := range have {
		if keys == nil {
			return
		}
		stands += len(keys)
		for key := range keys {
			rs.elements = append(rs.elements, key)
		}
	}
	if same && stood == stands {
		return
	}
	k.rulesetRead.Store(&rs)
}
