package agentcore

import (
	"strings"

	"culvert/internal/overlay"
)

// Guest is an interface that a hypervisor asks about before its guest runs
// here. Empty fields are not known.
type Guest struct {
	MAC     overlay.MAC
	Bridge  string // that its device is to be a port of
	Network string // the hypervisor's own name for the network, NETWORK or NETWORK/PORTGROUP
	Tenant  string // of the port as its description names it
	Port    string
}

// Place is what this host knows of where such an interface belongs.
type Place struct {
	// Ours: it is to be in a network of the cluster, or names a port.
	Ours bool
	// VNI is its network's: of a bridge with a network's name even if this host
	// knows no such network; 0 if nothing says which.
	VNI     overlay.VNI
	Tenant  string        // the port's, as named or as its network's
	Network string        // TENANT/NETWORK; empty if this host knows none
	Port    *overlay.Port // nil if this host was not told of it
	Stands  bool          // the network's bridge is on this host
	Blocked bool          // the network is being deleted
	// May: the port, if there is one, may be on this host.
	May bool
}

// Place looks a guest's interface up. The bridge says which network it is in;
// before the hypervisor has resolved it, a network or port group of its own
// that is named TENANT.NETWORK, as the bridge's other name is. Shorter names
// are not believed here: hypervisors call networks of their own "default".
func (c *Core) Place(g Guest) Place {
	p := Place{Tenant: g.Tenant, Ours: g.Bridge == "" && g.Port != ""}
	n := c.placeNet(g, &p)
	if n == nil && g.Bridge == "" && g.Port != "" {
		if p.Tenant == "" {
			p.Tenant = "default"
		}
		p.VNI, _ = c.FindPort(p.Tenant, g.Port)
		n = c.byVNI[p.VNI]
	}
	if n == nil || !n.live() {
		return p
	}
	p.VNI, p.Network, p.Stands, p.Blocked = n.rec.VNI, n.rec.TenantName+"/"+n.rec.Name, n.bridge != 0, n.rec.Blocked
	if p.Tenant == "" {
		p.Tenant = n.rec.TenantName
	}
	uid := n.byMAC[g.MAC]
	if g.Port != "" {
		uid = n.byName[g.Port]
	}
	if e := n.ports[uid]; e != nil && !e.gone && p.Tenant == n.rec.TenantName {
		p.Port, p.May = e.rec, mayBeHere(e.rec, c.cfg.Name)
	}
	return p
}

// placeNet finds the network that a guest's interface is to be in.
func (c *Core) placeNet(g Guest, p *Place) *network {
	if g.Bridge != "" {
		vni, ok := overlay.VNIOfDevice(g.Bridge)
		if !ok || vni.Bridge() != g.Bridge {
			return nil // a bridge of somebody else
		}
		p.Ours, p.VNI = true, vni
		return c.byVNI[vni]
	}
	network, group, _ := strings.Cut(g.Network, "/")
	for _, n := range c.sortedNets() {
		if name := n.name(); name != "" && (name == network || name == group) {
			p.Ours = true
			return n
		}
	}
	return nil
}

// name is the other name of the network's bridge, TENANT.NETWORK; empty for a
// network that is not there.
func (n *network) name() string {
	if !n.live() {
		return ""
	}
	return n.rec.TenantName + "." + n.rec.Name
}
