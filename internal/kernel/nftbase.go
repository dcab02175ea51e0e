package kernel

import (
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of our nftables objects. Each of the three families has one table,
// all of the same name, so that `nft list ruleset | grep culvert` finds all.
const (
	tableName     = "culvert"
	setVTEP4      = "vtep4"
	setVTEP6      = "vtep6"
	setMember     = "member"
	setMark       = "reached" // "mark" is a word of nft's
	chainUnderlay = "underlay"
	chainForward  = "forward"
	counterName   = "strangers"
)

// The tables.
//
// inet: UDP to the VXLAN port is taken from members of vtep4 and vtep6 only.
// The chain hooks into input, not prerouting: a datagram that this host only
// routes on (VXLAN of somebody else's, a VM's own) is none of our business, and
// fragments are whole again there, so that none passes for lack of a UDP
// header. It runs at raw priority, before any filter that might accept; a
// dropped packet never confirms its conntrack entry. The set reached is in no
// rule: it is what the kernel remembers for us (see hoststate.MarkKey).
//
// bridge: a frame passes between two members, or between two ports neither of
// which is one. The latter are ports of bridges that are not ours, and ports
// of ours that nobody claimed: those are isolated from each other by a flag
// of the bridge port (see setPort), because rules cannot ask for the name of
// the bridge on every kernel.
//
// netdev: one chain a bridge of ours, named after it, at the bridge's ingress
// with policy drop: nothing that a bridge hands up reaches the host.
var (
	inetTable   = &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	bridgeTable = &nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}
	netdevTable = &nftables.Table{Name: tableName, Family: nftables.TableFamilyNetdev}

	baseTables = []*nftables.Table{inetTable, bridgeTable, netdevTable}
)

// baseSets are fresh descriptions, for the library writes into them. They have
// numbers, because it would take those from a counter without a lock.
func baseSets() []*nftables.Set {
	return []*nftables.Set{
		{Table: inetTable, Name: setVTEP4, ID: 1, KeyType: nftables.TypeIPAddr},
		{Table: inetTable, Name: setVTEP6, ID: 2, KeyType: nftables.TypeIP6Addr},
		{Table: bridgeTable, Name: setMember, ID: 3, KeyType: nftables.TypeIFIndex, KeyByteOrder: binaryutil.NativeEndian},
		{Table: inetTable, Name: setMark, ID: 4, KeyType: nftables.TypeIP6Addr},
	}
}

// baseChain is a chain with its rules.
type baseChain struct {
	*nftables.Chain
	rules [][]expr.Any
}

func baseChains(port uint16) []baseChain {
	accept := nftables.ChainPolicyAccept
	return []baseChain{
		{&nftables.Chain{
			Table: inetTable, Name: chainUnderlay, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRaw, Policy: &accept,
		}, [][]expr.Any{
			strangers(port, unix.NFPROTO_IPV4, 12, 4, setVTEP4), // saddr: RFC 791 section 3.1
			strangers(port, unix.NFPROTO_IPV6, 8, 16, setVTEP6), // saddr: RFC 8200 section 3
		}},
		{&nftables.Chain{
			Table: bridgeTable, Name: chainForward, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(-200), Policy: &accept,
		}, [][]expr.Any{
			append(append(inMembers(expr.MetaKeyIIF), inMembers(expr.MetaKeyOIF)...), verdict(expr.VerdictAccept)),
			append(inMembers(expr.MetaKeyIIF), verdict(expr.VerdictDrop)),
			append(inMembers(expr.MetaKeyOIF), verdict(expr.VerdictDrop)),
		}},
	}
}

// strangers counts and drops UDP to the port from an address of that family
// which is not in the set.
func strangers(port uint16, family byte, saddr, length uint32, set string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: saddr, Len: length},
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true},
		&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counterName},
		verdict(expr.VerdictDrop),
	}
}

func inMembers(key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: setMember},
	}
}

func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

// nft is a connection for one transaction or one read of rules. It is opened
// anew each time: answers that the library leaves unread after an error die
// with the socket.
func (k *Kernel) nft() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(k.ns))
}

// makeBase makes what is missing of the base, in one transaction. Sets keep
// their elements and the counter its count; chains that are not as they
// should be are replaced whole. Nothing is written if all stands.
func (k *Kernel) makeBase() error {
	k.base.Lock()
	defer k.base.Unlock()
	if rs := k.rulesetRead.Load(); rs != nil && rs.stands {
		if gen, err := generation(k.nfw); err == nil && gen == rs.gen {
			return nil
		}
	}
	have, err := readBase(k.nfw)
	if err != nil {
		return fmt.Errorf("read nftables: %w", err)
	}
	if ok, err := k.baseStands(have); err != nil || ok {
		return err
	}
	if err := k.wake(have); err != nil {
		return err
	}
	c, err := k.nft()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, t := range baseTables {
		c.AddTable(t)
	}
	for _, s := range baseSets() {
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	if !have.counter {
		c.AddObj(&nftables.CounterObj{Table: inetTable, Name: counterName})
	}
	for _, b := range baseChains(k.port) {
		if _, ok := have.chains[chainID{uint8(b.Table.Family), b.Name}]; ok {
			c.FlushChain(b.Chain)
			c.DelChain(b.Chain)
		}
		c.AddChain(b.Chain)
		for _, r := range b.rules {
			c.AddRule(&nftables.Rule{Table: b.Table, Chain: b.Chain, Exprs: r})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables base: %w", err)
	}
	return nil
}

// wake clears the dormant flag of tables, in a transaction of its own: the
// kernel refuses to change chains in the one that does.
func (k *Kernel) wake(have *base) error {
	c, err := k.nft()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, t := range baseTables {
		if have.tables[uint8(t.Family)] != 0 {
			c.AddTable(t)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("wake tables: %w", err)
	}
	return nil
}

// baseStands compares tables, chains, rules, sets and counter with the base.
func (k *Kernel) baseStands(have *base) (bool, error) {
	for _, t := range baseTables {
		if flags, ok := have.tables[uint8(t.Family)]; !ok || flags != 0 {
			return false, nil // absent, or dormant
		}
	}
	if !have.counter || !have.sets {
		return false, nil
	}
	for _, b := range baseChains(k.port) {
		c, ok := have.chains[chainID{uint8(b.Table.Family), b.Name}]
		if !ok || c.hook != uint32(*b.Hooknum) || c.priority != int32(*b.Priority) || c.policy != uint32(*b.Policy) ||
			c.typ != string(b.Type) || !c.hooked {
			return false, nil
		}
		ok, err := k.rulesStand(b)
		if err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

func (k *Kernel) rulesStand(b baseChain) (bool, error) {
	rules, err := k.rules.get(b.Chain)
	if err != nil {
		return false, fmt.Errorf("read rules of %s: %w", b.Name, err)
	}
	if len(rules) != len(b.rules) {
		return false, nil
	}
	for i, r := range rules {
		if !reflect.DeepEqual(r.Exprs, b.rules[i]) {
			return false, nil
		}
	}
	return true, nil
}

// ruleReader keeps a connection for reading rules, which opening costs ten
// times as much as the reading. After an error it opens a new one.
type ruleReader struct {
	ns int

	mu   sync.Mutex // guards conn, and is held while it is read from
	conn *nftables.Conn
}

func (r *ruleReader) get(c *nftables.Chain) ([]*nftables.Rule, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		conn, err := nftables.New(nftables.WithNetNSFd(r.ns), nftables.AsLasting())
		if err != nil {
			return nil, err
		}
		r.conn = conn
	}
	rules, err := r.conn.GetRules(c.Table, c)
	if err != nil {
		// The library wraps its errors in words (%v), so that none can be told
		// from another; a chain that went is found by the next read.
		err = errors.Join(errInterrupted, err, r.drop())
	}
	return rules, err
}

// drop closes the connection. Callers hold mu.
func (r *ruleReader) drop() error {
	if r.conn == nil {
		return nil
	}
	conn := r.conn
	r.conn = nil
	return conn.CloseLasting()
}

func (r *ruleReader) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drop()
}

// isolate puts the isolation chain on a bridge, replacing one that is not as
// it should be. With fresh it is made anew even if it stands: one left over
// from an earlier bridge of that name may be bound to nothing.
func (k *Kernel) isolate(bridge string, fresh bool) error {
	k.base.Lock()
	defer k.base.Unlock()
	have, err := readBase(k.nfw)
	if err != nil {
		return fmt.Errorf("read nftables: %w", err)
	}
	old, found := have.chains[chainID{unix.NFPROTO_NETDEV, bridge}]
	if found && old.isolates(bridge) && have.tables[unix.NFPROTO_NETDEV] == 0 && !fresh {
		return nil
	}
	if err := k.wake(have); err != nil {
		return err
	}
	c, err := k.nft()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.AddTable(netdevTable)
	drop := nftables.ChainPolicyDrop
	chain := &nftables.Chain{
		Table: netdevTable, Name: bridge, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityRef(isolationPriority), Policy: &drop, Device: bridge,
	}
	if found {
		c.FlushChain(chain)
		c.DelChain(chain)
	}
	c.AddChain(chain)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("isolate %s: %w", bridge, err)
	}
	return nil
}

// isolationPriority is before every priority that nft(8) names.
const isolationPriority = -500

// unisolate removes the chain of a bridge that is gone. Some kernels have
// removed it with the device.
func (k *Kernel) unisolate(bridge string) error {
	k.base.Lock()
	defer k.base.Unlock()
	have, err := readBase(k.nfw)
	if err != nil {
		return fmt.Errorf("read nftables: %w", err)
	}
	if _, ok := have.chains[chainID{unix.NFPROTO_NETDEV, bridge}]; !ok {
		return nil
	}
	c, err := k.nft()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	chain := &nftables.Chain{Table: netdevTable, Name: bridge}
	c.FlushChain(chain)
	c.DelChain(chain)
	if err := c.Flush(); err != nil && !gone(err) {
		return fmt.Errorf("remove isolation of %s: %w", bridge, err)
	}
	return nil
}
