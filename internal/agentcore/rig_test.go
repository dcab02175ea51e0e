package agentcore

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
)

// rig is an agent's core over a model kernel, driven by lines of text.
type rig struct {
	tb     testing.TB
	c      *Core
	m      *kerneltest.Model
	now    Time
	rev    uint64
	epoch  uint32
	least  uint64 // the store is at least at this revision, whatever the records are of
	id     uint64
	sums   map[string]*overlay.Sum
	revs   map[overlay.Key]uint64 // of live records, for the sums
	ops    []string               // done since the last look, in order
	hold   bool                   // operations are given, but not answered
	flying []hoststate.Result
	reads  int
	first  int32              // device that was plugged
	each   func(hoststate.Op) // after each operation; nil: they are done together
}

// chunk is how many operations are done together.
func (r *rig) chunk(n int) int {
	if r.each != nil {
		return 1
	}
	return n
}

func named(kind byte, name string) (u overlay.UID) {
	u[0] = kind
	copy(u[1:], name)
	return u
}

func netUID(name string) overlay.UID  { return named('n', name) }
func portUID(name string) overlay.UID { return named('p', name) }
func hostUID(name string) overlay.UID { return named('h', name) }

func newRig(tb testing.TB) *rig {
	tb.Helper()
	r := &rig{tb: tb, m: kerneltest.New(), now: second, epoch: 1, sums: map[string]*overlay.Sum{}, revs: map[overlay.Key]uint64{}}
	r.restart()
	return r
}

// restart is a new agent over the same kernel, with nothing on its disk, after
// its first look.
func (r *rig) restart() { r.blind(); r.step(Tick{}) }

// blind is one before its first look.
func (r *rig) blind() {
	r.c = New(Config{Cluster: "lab", Self: hostUID("h1"), Name: "h1", VTEP: netip.MustParseAddr("192.0.2.201"), UDPPort: 4789, Grace: 5 * second, Verify: 60 * second})
	r.m.Doorbells()
}

// store begins another store, which will be at the given revision at least.
func (r *rig) store(epoch uint32, least uint64) {
	r.rev, r.epoch, r.least = 0, epoch, least
	r.sums, r.revs = map[string]*overlay.Sum{}, map[overlay.Key]uint64{}
}

func (r *rig) step(e Event) { r.c.Step(r.now, e); r.settle() }

func (r *rig) tick(d Time) { r.now += d; r.step(Tick{}) }

// settle reads, writes and rings until nothing is left to do now.
func (r *rig) settle() {
	for range 200 {
		if sc, ok := r.c.NextRead(); ok {
			r.reads++
			st, _ := r.m.Read(context.Background(), sc)
			r.c.Step(r.now, Read{Scope: sc, State: st, Cost: 1000})
			continue
		}
		if ops := r.c.NextOps(nil, 200); len(ops) > 0 {
			var res []hoststate.Result
			for part := range slices.Chunk(ops, r.chunk(len(ops))) {
				res = append(res, r.m.Apply(context.Background(), part)...)
				if r.each != nil {
					r.each(part[0])
				}
			}
			for _, x := range res {
				r.ops = append(r.ops, x.Op.String())
			}
			if r.hold {
				r.flying = append(r.flying, res...)
				continue
			}
			r.c.Step(r.now, Applied{Results: res})
			continue
		}
		if misses := r.m.Misses(); len(misses) > 0 {
			for _, m := range misses {
				r.c.Step(r.now, Missed{m})
			}
			continue
		}
		if bells := r.m.Doorbells(); len(bells) > 0 {
			for _, b := range bells {
				r.c.Step(r.now, Bell{Doorbell: b})
			}
			continue
		}
		return
	}
	r.tb.Fatalf("the core never comes to rest; last operations:\n%s", strings.Join(r.ops[max(0, len(r.ops)-20):], "\n"))
}

// release answers what was held.
func (r *rig) release() {
	r.hold = false
	res := r.flying
	r.flying = nil
	r.step(Applied{Results: res})
}

// did takes the operations since the last look, one a line.
func (r *rig) did() string {
	s := strings.Join(r.ops, "\n")
	r.ops = nil
	return s
}

// wants compares the operations since the last look.
func (r *rig) wants(lines ...string) {
	r.tb.Helper()
	if got, want := r.did(), strings.Join(lines, "\n"); got != want {
		r.tb.Errorf("operations are\n%s\nwant\n%s", got, want)
	}
}

// item makes one entry from a line. A leading "-" makes a tombstone.
//
//	host h2 192.0.2.2 [dead]
//	network n1 10 [none] [blocked] [ondemand] [learn] [dhcp] [tells] [foreign=192.0.2.9] [domain] [mtu=1400] [hosts=h1,h2]
//	  [reach=n2,n3] [from=n2] [bridge=n2] [hop=10.9.0.0/16,n2,02:00:00:00:00:02 ...] [10.0.0.0/24 ...]
//	port p1 02:00:00:00:00:01 [ip=10.0.0.1,fd00::1] [share=10.0.0.9] [checked] [host ...]
//	at h2 p1 02:00:00:00:00:01 10.0.0.1,fd00::1 [pre=h3] [from=h1]
func (r *rig) item(network, line string) Item {
	line, gone := strings.CutPrefix(line, "-")
	f := strings.Fields(line)
	r.rev++
	it := Item{Rev: overlay.Rev{Epoch: r.epoch, N: r.rev}, Gone: gone}
	meta := func(kind byte) overlay.Meta { return overlay.Meta{UID: named(kind, f[1]), Name: f[1]} }
	switch f[0] {
	case "host":
		it.Rec = &overlay.Host{Meta: meta('h'), VTEP: netip.MustParseAddr(f[2]), Dead: len(f) > 3}
	case "network":
		n := &overlay.Network{Meta: meta('n'), TenantName: "default", MTU: 1450}
		fmt.Sscan(f[2], (*uint32)(&n.VNI))
		n.Blocked = slices.Contains(f, "blocked")
		if slices.Contains(f, "ondemand") {
			n.Distribution = overlay.DistributeOnDemand
		}
		if slices.Contains(f, "learn") {
			n.Admission = overlay.AdmitLearn
		} else if slices.Contains(f, "dhcp") {
			n.Admission = overlay.AdmitDHCP
		}
		if slices.Contains(f, "none") {
			n.Flood = overlay.FloodNone
		}
		if slices.Contains(f, "domain") {
			n.Domain = named('d', "d1")
		}
		n.Tell.DHCP = overlay.DHCPOwn
		if slices.Contains(f, "tells") {
			n.Tell = overlay.Tell{
				DNS:    []netip.Addr{netip.MustParseAddr("10.0.0.53"), netip.MustParseAddr("fd00::53")},
				Routes: []overlay.Route{{Prefix: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.0.0.9")}},
			}
		}
		for _, x := range f[3:] {
			if list, ok := strings.CutPrefix(x, "foreign="); ok {
				n.Foreign = addresses(list)
			}
			if list, ok := strings.CutPrefix(x, "hosts="); ok {
				n.Hosts = strings.Split(list, ",")
			}
			if list, ok := strings.CutPrefix(x, "reach="); ok {
				n.Reach = networks(list)
			}
			if list, ok := strings.CutPrefix(x, "from="); ok {
				n.From = networks(list)
			}
			if list, ok := strings.CutPrefix(x, "bridge="); ok {
				n.Bridge = networks(list)
			}
			if hop, ok := strings.CutPrefix(x, "hop="); ok {
				h := strings.Split(hop, ",")
				n.Routes = append(n.Routes, overlay.NextHop{Prefix: netip.MustParsePrefix(h[0]), Network: netUID(h[1]), MAC: mac(h[2])})
			}
			fmt.Sscanf(x, "mtu=%d", &n.MTU)
			if sn, err := overlay.ParseSubnet("subnet", x, ""); err == nil {
				n.Subnets = append(n.Subnets, sn)
			}
		}
		it.Rec = n
	case "port":
		p := &overlay.Port{Meta: meta('p'), Network: netUID(network), MAC: mac(f[2]), Hosts: f[3:]}
		if len(p.Hosts) > 0 && strings.HasPrefix(p.Hosts[0], "ip=") {
			p.Addresses, p.Hosts = addresses(p.Hosts[0][3:]), p.Hosts[1:]
		}
		if len(p.Hosts) > 0 && strings.HasPrefix(p.Hosts[0], "share=") {
			p.Shared, p.Hosts = addresses(p.Hosts[0][6:]), p.Hosts[1:]
		}
		if len(p.Hosts) > 0 && p.Hosts[0] == "checked" {
			p.AddressCheck, p.Hosts = true, p.Hosts[1:]
		}
		it.Rec = p
	case "at":
		e := &overlay.Endpoint{Network: netUID(network), Host: hostUID(f[1]), MAC: mac(f[3]), Evidence: overlay.EvidenceDevice}
		if f[2] != "-" { // undeclared
			e.Port = portUID(f[2])
		}
		if len(f) > 4 {
			e.Addresses = addresses(f[4])
			for _, x := range f[5:] {
				if h, ok := strings.CutPrefix(x, "pre="); ok {
					e.Pre = append(e.Pre, hostUID(h))
				} else if h, ok := strings.CutPrefix(x, "from="); ok {
					e.From = hostUID(h)
				}
			}
		}
		it.Rec = e
	default:
		r.tb.Fatalf("line %q", line)
	}
	r.note(network, it)
	return it
}

func addresses(list string) (out []netip.Addr) {
	for _, a := range strings.Split(list, ",") {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func networks(list string) (out []overlay.UID) {
	for _, n := range strings.Split(list, ",") {
		out = append(out, netUID(n))
	}
	return out
}

func mac(s string) overlay.MAC {
	m, err := overlay.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func (r *rig) note(network string, it Item) {
	s := r.sums[network]
	if s == nil {
		s = &overlay.Sum{}
		r.sums[network] = s
	}
	k := overlay.KeyOf(it.Rec)
	if n, ok := r.revs[k]; ok {
		s.Sub(k, overlay.Rev{Epoch: r.epoch, N: n})
		delete(r.revs, k)
	}
	if !it.Gone {
		s.Add(k, it.Rev)
		r.revs[k] = it.Rev.N
	}
}

// fleet is a full pass over the fleet's log, with h1 and h2 to h4 and the
// networks given as "NAME VNI ...".
func (r *rig) fleet(networks ...string) {
	e := Items{Begins: []overlay.UID{{}}}
	for i := range 4 {
		e.Items = append(e.Items, r.item("", fmt.Sprintf("host h%d 192.0.2.%d", i+1, 201+i)))
	}
	for _, n := range networks {
		if at, line, ok := strings.Cut(n, ": "); ok { // its revision
			fmt.Sscan(at, &r.rev)
			r.rev--
			n = line
		}
		e.Items = append(e.Items, r.item("", "network "+n))
	}
	r.finish(&e, overlay.UID{}, "", true)
	r.step(e)
}

// log is a full pass over a network's log.
func (r *rig) log(network string, lines ...string) {
	e := Items{Begins: []overlay.UID{netUID(network)}}
	for _, l := range lines {
		e.Items = append(e.Items, r.item(network, l))
	}
	r.finish(&e, netUID(network), network, true)
	r.step(e)
}

// news are later changes of a network's log (or, for "", the fleet's).
func (r *rig) news(network string, lines ...string) {
	e := Items{}
	for _, l := range lines {
		e.Items = append(e.Items, r.item(network, l))
	}
	var uid overlay.UID
	if network != "" {
		uid = netUID(network)
	}
	r.finish(&e, uid, network, false)
	r.step(e)
}

func (r *rig) finish(e *Items, uid overlay.UID, network string, full bool) {
	at := overlay.Rev{Epoch: r.epoch, N: max(r.rev, r.least)}
	e.Ends, e.UpTo = []End{{Network: uid, Full: full, Sent: at}}, at
	if s := r.sums[network]; s != nil && network != "" {
		e.Ends[0].Sum = *s
	}
}

// plug starts a VM on the network's bridge, named by its alias.
func (r *rig) plug(network, port string) int32 {
	var vni overlay.VNI
	if n := r.c.nets[netUID(network)]; n != nil && n.rec != nil {
		vni = n.rec.VNI
	}
	i := r.m.Plug("tap-"+port, vni, hoststate.PortAlias("default", port))
	if r.first == 0 {
		r.first = i
	}
	r.settle()
	return i
}

func (r *rig) unplug(port string) { r.m.Unplug("tap-" + port); r.settle() }

func (r *rig) connect() { r.id++; r.step(Connected{Session: r.id}) }

// ups takes all that the core has to tell, as lines.
func (r *rig) ups() string {
	var out []string
	for {
		u := r.c.NextUp()
		if u.Empty() {
			return strings.Join(out, "\n")
		}
		out = append(out, upLines(u)...)
	}
}

// upLines are what the core tells at once.
func upLines(u Up) (out []string) {
	for _, d := range u.Demands {
		out = append(out, demandLine(d))
	}
	for _, a := range u.Add {
		line := fmt.Sprintf("add %s from %v", nameOf(a.Network), a.Sent)
		if a.OnDemand {
			line += " on demand"
		}
		out = append(out, line)
	}
	for _, x := range u.Remove {
		out = append(out, "remove "+nameOf(x))
	}
	for _, cl := range u.Claims {
		verb := "claim"
		switch {
		case cl.Leave && cl.Pre:
			verb = "unexpect"
		case cl.Leave:
			verb = "leave"
		case cl.Pre:
			verb = "expect"
		}
		out = append(out, fmt.Sprintf("%s %d %s base %v %s", verb, cl.ID, cl.MAC, cl.Base, cl.Evidence))
	}
	if u.InventoryEnd {
		out = append(out, "inventory ends")
	}
	if !u.Ack.IsZero() {
		out = append(out, fmt.Sprintf("ack %v", u.Ack))
	}
	return out
}

func nameOf(uid overlay.UID) string { return strings.TrimRight(string(uid[1:]), "\x00") }

// demandLine is "want NETWORK WHAT [for MAC]" or "drop NETWORK WHAT".
func demandLine(d Demand) string {
	verb, what := "want", d.MAC.String()
	switch {
	case d.Name != "":
		what = "port " + d.Name
	case d.Address.IsValid():
		what = d.Address.String()
	}
	if d.Drop {
		verb = "drop"
	}
	if !d.For.IsZero() {
		what += " for " + d.For.String()
	}
	return verb + " " + nameOf(d.Network) + " " + what
}

// says compares what the core has to tell.
func (r *rig) says(lines ...string) {
	r.tb.Helper()
	if got, want := r.ups(), strings.Join(lines, "\n"); got != want {
		r.tb.Errorf("told\n%s\nwant\n%s", got, want)
	}
}

// dump is what the kernel holds.
func (r *rig) dump() string { return r.m.String() }

// clock is the time for the model kernel's entries.
func (r *rig) clock() time.Duration { return time.Duration(r.now) }
