package api

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// RecordVersion is the byte before each record in the store. A reader refuses
// a version it does not know, by number.
const RecordVersion = 1

// ErrRecord is the cause of every refusal of a record's bytes.
var ErrRecord = errors.New("record is not valid")

// Limits of one record, so that a hostile or torn one cannot grow a core.
const (
	maxRecordAddresses = 64
	maxRecordHosts     = 8192
	maxRecordLabels    = 64
)

// MarshalStore is the store's form: the version byte, then the record.
// The same record gives the same bytes, always.
func MarshalStore(rec overlay.Record, gone bool) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{RecordVersion}, RecordPB(rec, gone))
	if err != nil { // only invalid UTF-8 can do that, and names were checked at the edge
		panic("marshal of a checked record: " + err.Error())
	}
	return b
}

// UnmarshalStore reads what MarshalStore wrote. Errors wrap ErrRecord.
func UnmarshalStore(b []byte) (rec overlay.Record, gone bool, err error) {
	if len(b) == 0 {
		return nil, false, fmt.Errorf("empty value: %w", ErrRecord)
	}
	if b[0] != RecordVersion {
		return nil, false, fmt.Errorf("record version %d, this program reads %d: %w", b[0], RecordVersion, ErrRecord)
	}
	var pb culvertv1.Record
	if err := proto.Unmarshal(b[1:], &pb); err != nil {
		return nil, false, fmt.Errorf("record bytes: %w", ErrRecord)
	}
	return RecordFromPB(&pb)
}

// ItemWire is an encoded culvertv1.Item: the same bytes for the same entry.
func ItemWire(rec overlay.Record, rev overlay.Rev, gone bool) []byte {
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(&culvertv1.Item{Rev: RevPB(rev), Record: RecordPB(rec, gone)})
	if err != nil { // only invalid UTF-8 can do that, and names were checked at the edge
		panic("marshal of a checked item: " + err.Error())
	}
	return wire
}

// RevPB is r on the wire; nil for the zero revision.
func RevPB(r overlay.Rev) *culvertv1.Rev {
	if r.IsZero() {
		return nil
	}
	return &culvertv1.Rev{Epoch: r.Epoch, N: r.N}
}

// RevFromPB reads RevPB; nil is the zero revision.
func RevFromPB(r *culvertv1.Rev) overlay.Rev {
	return overlay.Rev{Epoch: r.GetEpoch(), N: r.GetN()}
}

// RecordPB is rec as a message. gone makes it a tombstone.
func RecordPB(rec overlay.Record, gone bool) *culvertv1.Record {
	pb := &culvertv1.Record{Gone: gone}
	switch r := rec.(type) {
	case *overlay.Tenant:
		pb.Body = &culvertv1.Record_Tenant{Tenant: &culvertv1.TenantRecord{
			Meta: metaPB(&r.Meta), MaxNetworks: r.MaxNetworks, MaxPorts: r.MaxPorts, MaxPortAddresses: r.MaxPortAddresses,
		}}
	case *overlay.Network:
		n := &culvertv1.NetworkRecord{
			Meta: metaPB(&r.Meta), WantVni: uint32(r.WantVNI), Vni: uint32(r.VNI), WantMtu: uint32(r.WantMTU), Mtu: uint32(r.MTU),
			Df: uint32(r.DF), Flood: uint32(r.Flood), Hosts: r.Hosts, Blocked: r.Blocked, Admission: uint32(r.Admission),
			TenantName: r.TenantName, Foreign: addrsBytes(r.Foreign),
			Domain: uidBytes(r.Domain), Reach: uidsBytes(r.Reach), From: uidsBytes(r.From),
			Bridge: uidsBytes(r.Bridge), Distribution: uint32(r.Distribution),
		}
		for _, h := range r.Routes {
			n.NextHops = append(n.NextHops, &culvertv1.NextHopRecord{
				Address: h.Prefix.Addr().AsSlice(), Bits: uint32(h.Prefix.Bits()), Network: uidBytes(h.Network), Mac: macBytes(h.MAC),
			})
		}
		for _, s := range r.Subnets {
			n.Subnets = append(n.Subnets, &culvertv1.SubnetRecord{
				Address: s.Prefix.Addr().AsSlice(), Bits: uint32(s.Prefix.Bits()), Gateway: addrBytes(s.Gateway),
			})
		}
		tellPB(n, &r.Tell)
		pb.Body = &culvertv1.Record_Network{Network: n}
	case *overlay.Port:
		pb.Body = &culvertv1.Record_Port{Port: &culvertv1.PortRecord{
			Meta: metaPB(&r.Meta), Network: uidBytes(r.Network), WantMac: macBytes(r.WantMAC), Mac: macBytes(r.MAC),
			WantAddresses: addrsBytes(r.WantAddresses), Addresses: addrsBytes(r.Addresses), Vm: r.VM, Hosts: r.Hosts, Shared: addrsBytes(r.Shared), AddressCheck: r.AddressCheck, Gateway: uidBytes(r.Gateway),
		}}
	case *overlay.Gateway:
		pb.Body = &culvertv1.Record_Gateway{Gateway: gatewayPB(r)}
	case *overlay.Domain:
		pb.Body = &culvertv1.Record_Domain{Domain: &culvertv1.DomainRecord{Meta: metaPB(&r.Meta), Tenants: uidsBytes(r.Tenants), Routes: routesPB(r.Routes)}}
	case *overlay.Policy:
		pb.Body = &culvertv1.Record_Policy{Policy: &culvertv1.PolicyRecord{
			Meta: metaPB(&r.Meta), Domain: uidBytes(r.Domain), From: uidBytes(r.From), To: uidBytes(r.To), Both: r.Both, Bridged: r.Bridged,
		}}
	case *overlay.Host:
		pb.Body = &culvertv1.Record_Host{Host: &culvertv1.HostRecord{
			Meta: metaPB(&r.Meta), Vtep: addrBytes(r.VTEP), MachineId: r.MachineID, Dead: r.Dead,
		}}
	case *overlay.Session:
		pb.Body = &culvertv1.Record_Session{Session: &culvertv1.SessionRecord{Host: uidBytes(r.Host), N: r.N, BootId: r.BootID, Echo: r.Echo}}
	case *overlay.Floor:
		pb.Body = &culvertv1.Record_Floor{Floor: &culvertv1.FloorRecord{Network: uidBytes(r.Network), Rev: RevPB(r.Rev)}}
	case *overlay.Endpoint:
		pb.Body = &culvertv1.Record_Endpoint{Endpoint: &culvertv1.EndpointRecord{
			Network: uidBytes(r.Network), Mac: macBytes(r.MAC), Port: uidBytes(r.Port), Host: uidBytes(r.Host),
			Addresses: addrsBytes(r.Addresses), Evidence: uint32(r.Evidence), Cause: r.Cause, Since: r.Since,
			Pre: uidsBytes(r.Pre), From: uidBytes(r.From),
		}}
	}
	return pb
}

func tellPB(n *culvertv1.NetworkRecord, t *overlay.Tell) {
	n.Dhcp, n.Dns, n.WantLease = uint32(t.DHCP), addrsBytes(t.DNS), t.Lease
	n.Routes = routesPB(t.Routes)
}

func routesPB(routes []overlay.Route) (out []*culvertv1.RouteRecord) {
	for _, r := range routes {
		out = append(out, &culvertv1.RouteRecord{Address: r.Prefix.Addr().AsSlice(), Bits: uint32(r.Prefix.Bits()), Via: r.Via.AsSlice()})
	}
	return out
}

func metaPB(m *overlay.Meta) *culvertv1.MetaRecord {
	pb := &culvertv1.MetaRecord{Uid: uidBytes(m.UID), Name: m.Name, Tenant: uidBytes(m.Tenant), Cause: m.Cause, Changed: m.Changed}
	for _, l := range m.Labels {
		pb.Labels = append(pb.Labels, &culvertv1.LabelRecord{Key: l.Key, Value: l.Value})
	}
	return pb
}

func uidBytes(u overlay.UID) []byte {
	if u.IsZero() {
		return nil
	}
	return u[:]
}

func macBytes(m overlay.MAC) []byte {
	if m.IsZero() {
		return nil
	}
	return m[:]
}

func addrBytes(a netip.Addr) []byte {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}

func uidsBytes(us []overlay.UID) (out [][]byte) {
	for _, u := range us {
		out = append(out, uidBytes(u))
	}
	return out
}

func addrsBytes(as []netip.Addr) [][]byte {
	var out [][]byte
	for _, a := range as {
		out = append(out, a.AsSlice())
	}
	return out
}

// decoder remembers the first thing that was wrong, so that a record is read
// straight down and refused whole.
type decoder struct {
	err error
	is  error // what a refusal is an instance of; nil means ErrRecord
}

func (d *decoder) refuse(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%s: %w", what, cmp.Or(d.is, ErrRecord))
	}
}

func (d *decoder) uid(b []byte, what string, must bool) (u overlay.UID) {
	if len(b) == 0 && !must {
		return u
	}
	u, err := overlay.UIDFromBytes(b)
	if err != nil || u.IsZero() {
		d.refuse(what)
	}
	return u
}

func (d *decoder) mac(b []byte, what string, must bool) (m overlay.MAC) {
	if len(b) == 0 && !must {
		return m
	}
	if len(b) != 6 || !overlay.MAC(b).IsUnicast() {
		d.refuse(what)
		return m
	}
	return overlay.MAC(b)
}

func (d *decoder) addr(b []byte, what string, must bool) netip.Addr {
	if len(b) == 0 && !must {
		return netip.Addr{}
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.Is4In6() || a.IsMulticast() || a.IsUnspecified() {
		d.refuse(what)
	}
	return a
}

// prefix is one without host bits; that of all addresses is one, too.
func (d *decoder) prefix(b []byte, bits uint32, what string) netip.Prefix {
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.Is4In6() || a.IsMulticast() || bits > 128 {
		d.refuse(what)
		return netip.Prefix{}
	}
	p, err := a.Prefix(int(bits))
	if err != nil || p.Addr() != a {
		d.refuse(what)
	}
	return p
}

func (d *decoder) addrs(bs [][]byte, what string) []netip.Addr {
	if len(bs) > maxRecordAddresses {
		d.refuse(what)
		return nil
	}
	var out []netip.Addr
	for i, b := range bs {
		out = append(out, d.addr(b, what, true))
		if i > 0 && out[i-1].Compare(out[i]) >= 0 {
			d.refuse(what + " out of order")
		}
	}
	return out
}

// uids are each named once, at most max, in an order that says something.
func (d *decoder) uids(bs [][]byte, max int, what string) []overlay.UID {
	if len(bs) > max {
		d.refuse(what)
		return nil
	}
	var out []overlay.UID
	for _, b := range bs {
		u := d.uid(b, what, true)
		if slices.Contains(out, u) {
			d.refuse(what + " named twice")
		}
		out = append(out, u)
	}
	return out
}

func (d *decoder) names(s []string, what string) []string {
	if len(s) > maxRecordHosts {
		d.refuse(what)
	}
	for i := range s {
		if overlay.CheckName(what, s[i]) != nil || i > 0 && s[i-1] >= s[i] {
			d.refuse(what)
		}
	}
	return s
}

func (d *decoder) meta(m *culvertv1.MetaRecord) overlay.Meta {
	out := overlay.Meta{
		UID: d.uid(m.GetUid(), "uid", true), Name: m.GetName(), Tenant: d.uid(m.GetTenant(), "tenant", false),
		Cause: m.GetCause(), Changed: m.GetChanged(),
	}
	if overlay.CheckName("name", out.Name) != nil || len(m.GetLabels()) > maxRecordLabels {
		d.refuse("name or labels")
	}
	for i, l := range m.GetLabels() {
		out.Labels = append(out.Labels, overlay.Label{Key: l.GetKey(), Value: l.GetValue()})
		if i > 0 && out.Labels[i-1].Key >= l.GetKey() {
			d.refuse("labels out of order")
		}
	}
	return out
}

// RecordFromPB checks and converts one record. What it accepts, RecordPB turns
// into an equal message. Errors wrap ErrRecord.
func RecordFromPB(pb *culvertv1.Record) (rec overlay.Record, gone bool, err error) {
	var d decoder
	switch b := pb.GetBody().(type) {
	case *culvertv1.Record_Tenant:
		t := b.Tenant
		rec = &overlay.Tenant{Meta: d.meta(t.GetMeta()), MaxNetworks: t.GetMaxNetworks(), MaxPorts: t.GetMaxPorts(), MaxPortAddresses: t.GetMaxPortAddresses()}
	case *culvertv1.Record_Network:
		rec = d.network(b.Network)
	case *culvertv1.Record_Port:
		p := b.Port
		rec = &overlay.Port{
			Meta: d.meta(p.GetMeta()), Network: d.uid(p.GetNetwork(), "port's network", true),
			WantMAC: d.mac(p.GetWantMac(), "wanted MAC", false), MAC: d.mac(p.GetMac(), "MAC", true),
			WantAddresses: d.addrs(p.GetWantAddresses(), "wanted addresses"), Addresses: d.addrs(p.GetAddresses(), "addresses"),
			VM: p.GetVm(), Hosts: d.names(p.GetHosts(), "port's hosts"), Shared: d.addrs(p.GetShared(), "shared addresses"), AddressCheck: p.GetAddressCheck(), Gateway: d.uid(p.GetGateway(), "port's gateway", false),
		}
	case *culvertv1.Record_Domain:
		rec = d.domain(b.Domain)
	case *culvertv1.Record_Gateway:
		rec = d.gateway(b.Gateway)
	case *culvertv1.Record_Policy:
		rec = d.policy(b.Policy)
	case *culvertv1.Record_Host:
		h := b.Host
		rec = &overlay.Host{Meta: d.meta(h.GetMeta()), VTEP: d.addr(h.GetVtep(), "VTEP", false), MachineID: h.GetMachineId(), Dead: h.GetDead()}
	case *culvertv1.Record_Session:
		rec = &overlay.Session{Host: d.uid(b.Session.GetHost(), "session's host", true), N: b.Session.GetN(), BootID: b.Session.GetBootId(), Echo: b.Session.GetEcho()}
	case *culvertv1.Record_Floor:
		rec = &overlay.Floor{Network: d.uid(b.Floor.GetNetwork(), "floor's network", false), Rev: RevFromPB(b.Floor.GetRev())}
	case *culvertv1.Record_Endpoint:
		e := b.Endpoint
		if e.GetEvidence() > 255 {
			d.refuse("evidence")
		}
		rec = &overlay.Endpoint{
			Network: d.uid(e.GetNetwork(), "endpoint's network", true), MAC: d.mac(e.GetMac(), "endpoint's MAC", true),
			Port: d.uid(e.GetPort(), "endpoint's port", false), Host: d.uid(e.GetHost(), "endpoint's host", true),
			Addresses: d.addrs(e.GetAddresses(), "endpoint's addresses"), Evidence: overlay.Evidence(e.GetEvidence()),
			Cause: e.GetCause(), Since: e.GetSince(),
			Pre: d.uids(e.GetPre(), overlay.MaxPre, "pre-associated hosts"), From: d.uid(e.GetFrom(), "former host", false),
		}
	default:
		d.refuse("kind of record")
	}
	if d.err != nil {
		return nil, false, d.err
	}
	return rec, pb.GetGone(), nil
}

func (d *decoder) network(n *culvertv1.NetworkRecord) *overlay.Network {
	out := &overlay.Network{
		Meta: d.meta(n.GetMeta()), WantVNI: overlay.VNI(n.GetWantVni()), VNI: overlay.VNI(n.GetVni()),
		WantMTU: uint16(n.GetWantMtu()), MTU: uint16(n.GetMtu()), DF: overlay.DF(n.GetDf()), Flood: overlay.Flood(n.GetFlood()),
		Hosts: d.names(n.GetHosts(), "network's hosts"), Blocked: n.GetBlocked(), Admission: overlay.Admission(n.GetAdmission()),
		TenantName: n.GetTenantName(), Foreign: d.addrs(n.GetForeign(), "foreign tunnel end points"),
		Domain: d.uid(n.GetDomain(), "network's domain", false), Reach: d.others(n, n.GetReach()), From: d.others(n, n.GetFrom()),
		Bridge: d.others(n, n.GetBridge()), Routes: d.nextHops(n.GetNextHops()), Distribution: overlay.Distribution(n.GetDistribution()),
	}
	if overlay.CheckName("tenant", out.TenantName) != nil {
		d.refuse("tenant's name")
	}
	if !out.VNI.Valid() || out.WantVNI > overlay.MaxVNI {
		d.refuse("VNI")
	}
	if n.GetMtu() < overlay.MinMTU || n.GetMtu() > overlay.MaxMTU || n.GetWantMtu() > overlay.MaxMTU {
		d.refuse("MTU")
	}
	if n.GetDf() > uint32(overlay.DFInherit) || n.GetFlood() > uint32(overlay.FloodNone) || n.GetAdmission() > uint32(overlay.AdmitDHCP) ||
		n.GetDistribution() > uint32(overlay.DistributeOnDemand) {
		d.refuse("mode of the network")
	}
	for _, s := range n.GetSubnets() {
		p := d.prefix(s.GetAddress(), s.GetBits(), "subnet")
		out.Subnets = append(out.Subnets, overlay.Subnet{Prefix: p, Gateway: d.addr(s.GetGateway(), "gateway", false)})
	}
	if len(out.Subnets) > maxRecordAddresses {
		d.refuse("subnets")
	}
	out.Tell = d.tell(n)
	return out
}

// others are the networks that a network reaches or is reached from, in order.
func (d *decoder) others(n *culvertv1.NetworkRecord, bs [][]byte) []overlay.UID {
	const what = "networks beyond the gateway"
	if len(bs) > overlay.MaxPolicies || len(bs) > 0 && len(n.GetDomain()) == 0 {
		d.refuse(what)
		return nil
	}
	var out []overlay.UID
	for i, b := range bs {
		out = append(out, d.uid(b, what, true))
		if bytes.Equal(b, n.GetMeta().GetUid()) || i > 0 && out[i-1].Compare(out[i]) >= 0 {
			d.refuse(what)
		}
	}
	return out
}

func (d *decoder) nextHops(in []*culvertv1.NextHopRecord) []overlay.NextHop {
	const what = "next hops"
	if len(in) > overlay.MaxNextHops {
		d.refuse(what)
		return nil
	}
	var out []overlay.NextHop
	for i, h := range in {
		p := d.prefix(h.GetAddress(), h.GetBits(), what)
		if i > 0 && out[i-1].Prefix.Compare(p) >= 0 {
			d.refuse(what)
		}
		out = append(out, overlay.NextHop{Prefix: p, Network: d.uid(h.GetNetwork(), what, true), MAC: d.mac(h.GetMac(), what, true)})
	}
	return out
}

func (d *decoder) domain(p *culvertv1.DomainRecord) *overlay.Domain {
	out := &overlay.Domain{Meta: d.meta(p.GetMeta()), Tenants: d.uids(p.GetTenants(), overlay.MaxDomainTenants, "domain's tenants")}
	if !slices.IsSortedFunc(out.Tenants, overlay.UID.Compare) || slices.Contains(out.Tenants, out.Tenant) {
		d.refuse("domain's tenants")
	}
	if len(p.GetRoutes()) > overlay.MaxNextHops {
		d.refuse("domain's routes")
		return out
	}
	out.Routes = d.routes(p.GetRoutes())
	for i := 1; i < len(out.Routes); i++ {
		if out.Routes[i-1].Prefix.Compare(out.Routes[i].Prefix) >= 0 {
			d.refuse("domain's routes")
		}
	}
	return out
}

func (d *decoder) policy(p *culvertv1.PolicyRecord) *overlay.Policy {
	out := &overlay.Policy{
		Meta: d.meta(p.GetMeta()), Domain: d.uid(p.GetDomain(), "policy's domain", true),
		From: d.uid(p.GetFrom(), "policy's network", true), To: d.uid(p.GetTo(), "policy's network", true), Both: p.GetBoth(), Bridged: p.GetBridged(),
	}
	if out.From == out.To || out.Bridged && !out.Both {
		d.refuse("policy's networks")
	}
	return out
}

func (d *decoder) tell(n *culvertv1.NetworkRecord) overlay.Tell {
	t := overlay.Tell{DHCP: overlay.DHCP(n.GetDhcp()), Lease: n.GetWantLease()}
	if n.GetDhcp() > uint32(overlay.DHCPOwn) || len(n.GetDns()) > overlay.MaxDNS || t.Lease > overlay.MaxLease || t.Lease != 0 && t.Lease < overlay.MinLease || len(n.GetRoutes()) > overlay.MaxRoutes {
		d.refuse("what guests are told")
		return overlay.Tell{}
	}
	for _, b := range n.GetDns() { // in order of preference
		t.DNS = append(t.DNS, d.addr(b, "name server", true))
	}
	t.Routes = d.routes(n.GetRoutes())
	if slices.ContainsFunc(t.Routes, func(r overlay.Route) bool { return !r.Via.Is4() }) {
		d.refuse("route")
	}
	return t
}

// routes are ways by an address of the prefix's own family.
func (d *decoder) routes(in []*culvertv1.RouteRecord) (out []overlay.Route) {
	for _, r := range in {
		p, via := d.prefix(r.GetAddress(), r.GetBits(), "route"), d.addr(r.GetVia(), "route", true)
		if p.Addr().Is4() != via.Is4() {
			d.refuse("route")
		}
		out = append(out, overlay.Route{Prefix: p, Via: via})
	}
	return out
}
