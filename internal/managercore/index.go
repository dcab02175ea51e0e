package managercore

import (
	"net/netip"

	"culvert/internal/overlay"
)

type nameKey struct {
	kind   overlay.Kind
	tenant overlay.UID
	name   string
}

type netMAC struct {
	net overlay.UID
	mac overlay.MAC
}

type netIP struct {
	net overlay.UID
	ip  netip.Addr
}

// indexes are derived from the working rows and kept nowhere else: the store
// holds no index keys, because one decider decides on what it has in memory.
type indexes struct {
	names    map[nameKey]Key
	vnis     map[overlay.VNI]overlay.UID // tombstones hold their VNI too
	macs     map[netMAC]Key
	ips      map[netIP]Key                // of a port, or of an undeclared endpoint
	ports    map[overlay.UID]map[Key]bool // live ports of a network
	networks map[overlay.UID]int          // live networks of a tenant
	domains  map[overlay.UID]int          // live domains of a tenant
	members  map[overlay.UID]map[Key]bool // live networks of a domain
	admits   map[overlay.UID]map[Key]bool // live domains that let networks of a tenant in
	policies map[overlay.UID]map[Key]bool // live policies of a domain, and those that name a network
	tports   map[overlay.UID]int          // live ports of a tenant
	byHost   map[overlay.UID]map[Key]bool // live endpoints of a host
	preAt    map[overlay.UID]map[Key]bool // live endpoints that are expected on a host
	byNet    map[overlay.UID]map[Key]bool // endpoints of a network, tombstones too
	allPorts map[overlay.UID]map[Key]bool // ports of a network, tombstones too
	learned  map[overlay.UID]map[Key]bool // live undeclared endpoints of a network
	virtual  map[overlay.UID]map[Key]bool // live endpoints of ports, with a virtual router's MAC, of a network
	shared   map[netIP]map[Key]bool       // live ports that share an address
	gateways map[overlay.UID]map[Key]bool // live gateways of a tenant and of a domain; zero: all
	legs     map[overlay.UID]map[Key]bool // live ports of a gateway
	exits    map[overlay.UID]Key          // the gateway that has a leg in a network
	// hints: by network and prefix, an address below which none is free. Only
	// a shortcut: it never changes which address is the lowest free one.
	hints map[netIP]netip.Addr
}

func newIndexes() indexes {
	return indexes{
		names: map[nameKey]Key{}, vnis: map[overlay.VNI]overlay.UID{}, macs: map[netMAC]Key{}, ips: map[netIP]Key{},
		ports: map[overlay.UID]map[Key]bool{}, networks: map[overlay.UID]int{}, domains: map[overlay.UID]int{}, tports: map[overlay.UID]int{},
		byHost: map[overlay.UID]map[Key]bool{}, preAt: map[overlay.UID]map[Key]bool{}, byNet: map[overlay.UID]map[Key]bool{}, allPorts: map[overlay.UID]map[Key]bool{},
		learned: map[overlay.UID]map[Key]bool{}, virtual: map[overlay.UID]map[Key]bool{}, shared: map[netIP]map[Key]bool{},
		members: map[overlay.UID]map[Key]bool{}, admits: map[overlay.UID]map[Key]bool{}, policies: map[overlay.UID]map[Key]bool{},
		hints:    map[netIP]netip.Addr{},
		gateways: map[overlay.UID]map[Key]bool{}, legs: map[overlay.UID]map[Key]bool{}, exits: map[overlay.UID]Key{},
	}
}

func addTo(m map[overlay.UID]map[Key]bool, at overlay.UID, k Key) {
	s := m[at]
	if s == nil {
		s = map[Key]bool{}
		m[at] = s
	}
	s[k] = true
}

func removeFrom(m map[overlay.UID]map[Key]bool, at overlay.UID, k Key) {
	delete(m[at], k)
	if len(m[at]) == 0 {
		delete(m, at)
	}
}

func set[K comparable, V any](m map[K]V, k K, v V) { m[k] = v }

func unset[K, V comparable](m map[K]V, k K, v V) {
	if m[k] == v {
		delete(m, k)
	}
}

// add enters a row under everything it is found by.
func (x *indexes) add(k Key, w *row) {
	switch r := w.rec.(type) {
	case *overlay.Tenant:
		if !w.gone {
			set(x.names, nameKey{k.Kind, overlay.UID{}, r.Name}, k)
		}
	case *overlay.Host:
		if !w.gone {
			set(x.names, nameKey{k.Kind, overlay.UID{}, r.Name}, k)
		}
	case *overlay.Network:
		set(x.vnis, r.VNI, r.UID)
		if !w.gone {
			set(x.names, nameKey{k.Kind, r.Tenant, r.Name}, k)
			x.networks[r.Tenant]++
			if !r.Domain.IsZero() {
				addTo(x.members, r.Domain, k)
			}
		}
	case *overlay.Domain:
		if !w.gone {
			set(x.names, nameKey{k.Kind, r.Tenant, r.Name}, k)
			x.domains[r.Tenant]++
			for _, t := range r.Tenants {
				addTo(x.admits, t, k)
			}
		}
	case *overlay.Policy:
		if !w.gone {
			set(x.names, nameKey{k.Kind, r.Tenant, r.Name}, k)
			for _, of := range [...]overlay.UID{r.Domain, r.From, r.To} {
				addTo(x.policies, of, k)
			}
		}
	case *overlay.Gateway:
		if !w.gone {
			x.addGateway(r, k)
		}
	case *overlay.Port:
		addTo(x.allPorts, r.Network, k)
		if !w.gone {
			if !r.Gateway.IsZero() {
				addTo(x.legs, r.Gateway, k)
			}
			set(x.names, nameKey{k.Kind, r.Tenant, r.Name}, k)
			set(x.macs, netMAC{r.Network, r.MAC}, k)
			for _, a := range r.Addresses {
				set(x.ips, netIP{r.Network, a}, k)
			}
			x.share(r, k)
			addTo(x.ports, r.Network, k)
			x.tports[r.Tenant]++
		}
	case *overlay.Endpoint:
		addTo(x.byNet, r.Network, k)
		if !w.gone {
			addTo(x.byHost, r.Host, k)
			if r.Port.IsZero() {
				addTo(x.learned, r.Network, k)
				for _, a := range r.Addresses {
					set(x.ips, netIP{r.Network, a}, k)
				}
			} else if r.MAC.IsVirtual() {
				addTo(x.virtual, r.Network, k)
			}
			for _, h := range r.Pre {
				addTo(x.preAt, h, k)
			}
		}
	}
}

// remove undoes add for the same row.
func (x *indexes) remove(k Key, w *row) {
	switch r := w.rec.(type) {
	case *overlay.Tenant:
		if !w.gone {
			unset(x.names, nameKey{k.Kind, overlay.UID{}, r.Name}, k)
		}
	case *overlay.Host:
		if !w.gone {
			unset(x.names, nameKey{k.Kind, overlay.UID{}, r.Name}, k)
		}
	case *overlay.Network:
		unset(x.vnis, r.VNI, r.UID)
		if !w.gone {
			unset(x.names, nameKey{k.Kind, r.Tenant, r.Name}, k)
			x.networks[r.Tenant]--
			if !r.Domain.IsZero() {
				removeFrom(x.members, r.Domain, k)
			}
		}
	case *overlay.Domain:
		if !w.gone {
			unset(x.names, nameKey{k.Kind, r.Tenant, r.Name}, k)
			x.domains[r.Tenant]--
			for _, t := range r.Tenants {
				removeFrom(x.admits, t, k)
			}
		}
	case *overlay.Policy:
		if !w.gone {
			unset(x.names, nameKey{k.Kind, r.Tenant, r.Name}, k)
			for _, of := range [...]overlay.UID{r.Domain, r.From, r.To} {
				removeFrom(x.policies, of, k)
			}
		}
	case *overlay.Gateway:
		if !w.gone {
			x.removeGateway(r, k)
		}
	case *overlay.Port:
		removeFrom(x.allPorts, r.Network, k)
		if !w.gone {
			removeFrom(x.legs, r.Gateway, k)
			unset(x.names, nameKey{k.Kind, r.Tenant, r.Name}, k)
			unset(x.macs, netMAC{r.Network, r.MAC}, k)
			for _, a := range r.Addresses {
				x.freeIP(netIP{r.Network, a}, k)
			}
			x.unshare(r, k)
			removeFrom(x.ports, r.Network, k)
			x.tports[r.Tenant]--
		}
	case *overlay.Endpoint:
		removeFrom(x.byNet, r.Network, k)
		if !w.gone {
			removeFrom(x.byHost, r.Host, k)
			if r.Port.IsZero() {
				removeFrom(x.learned, r.Network, k)
				for _, a := range r.Addresses {
					x.freeIP(netIP{r.Network, a}, k)
				}
			} else if r.MAC.IsVirtual() {
				removeFrom(x.virtual, r.Network, k)
			}
			for _, h := range r.Pre {
				removeFrom(x.preAt, h, k)
			}
		}
	}
}

// freeIP takes an address out and lowers every hint above it.
func (x *indexes) freeIP(at netIP, k Key) {
	if x.ips[at] != k {
		return
	}
	delete(x.ips, at)
	x.lowerHints(at)
}

// lowerHints lowers every hint above an address that is free now.
func (x *indexes) lowerHints(at netIP) {
	for hk, h := range x.hints { // order-free: each hint by itself
		if hk.net == at.net && at.ip.Compare(h) < 0 && at.ip.Is4() == h.Is4() {
			x.hints[hk] = at.ip
		}
	}
}
