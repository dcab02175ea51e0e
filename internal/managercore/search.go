package managercore

import (
	"net/netip"
	"slices"

	"culvert/internal/overlay"
)

// An address that nobody is known to have is searched: the hosts that serve the
// network ask their undeclared guests. Who answers is heard, and claimed as ever; there is no other answer. What a search costs the
// other hosts is bounded, whoever asks for how many addresses: each is one
// message to each of them.

// Bounds of searches, of one network.
const (
	maxSearches  = 8 // at once
	searchTime   = 1e9
	searchAgain  = 10 * 1e9 // after one that found nothing, doubled each time
	searchLatest = 60 * 1e9
	maxNotFound  = 512 // addresses that are remembered not to have been found
)

// Seek says that a guest of a host asked for an address that nobody is known to
// have.
type Seek struct {
	Host    overlay.UID
	Session uint64
	Network overlay.UID
	Address netip.Addr
}

func (Seek) event() {}

// Ask is what a host is asked after an address: see api.Ask.
type Ask struct {
	ID      uint64
	Network overlay.UID
	MAC     overlay.MAC
	Address netip.Addr
	Within  Time
}

// search is one that was begun.
type search struct {
	end   Time // under way until then
	until Time // ... and not begun again before that
	wait  Time
}

func (c *Core) seek(e Seek) {
	s := c.current(e.Host, e.Session)
	if s == nil || c.lost || !s.serves[e.Network] || !c.mayBeFound(e.Network, e.Address) {
		return
	}
	m := c.searches[e.Network]
	was := m[e.Address]
	if c.now < was.until {
		c.stats.SearchesSpared++
		return
	}
	if !c.roomToSearch(e.Network) {
		c.stats.SearchesRefused++
		return
	}
	if m = c.searches[e.Network]; m == nil {
		m = map[netip.Addr]search{}
		c.searches[e.Network] = m
	}
	was.wait = min(max(2*was.wait, searchAgain), searchLatest)
	was.end = c.now + searchTime
	was.until = was.end + was.wait
	m[e.Address] = was
	c.stats.Searches++
	for _, h := range c.serving(e.Network) {
		c.errandAsk(h, Ask{Network: e.Network, Address: e.Address})
	}
}

// errandAsk has a host asked after an address.
func (c *Core) errandAsk(host overlay.UID, a Ask) {
	c.errand(ErrandAsk, host, "")
	c.errands[len(c.errands)-1].Ask = a
}

// mayBeFound reports whether a network takes an address of somebody who was not
// declared, and nobody is known to have it.
func (c *Core) mayBeFound(network overlay.UID, a netip.Addr) bool {
	w := c.rows[Key{Kind: overlay.KindNetwork, UID: network}]
	if w == nil || w.gone || !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
		return false
	}
	n := w.rec.(*overlay.Network)
	if _, known := c.ix.ips[netIP{network, a}]; known || n.Admission != overlay.AdmitLearn || n.Blocked {
		return false
	}
	return c.addressRefused(n, a, Key{}) == ""
}

// roomToSearch makes room for another search, and forgets what may be searched
// anew.
func (c *Core) roomToSearch(network overlay.UID) bool {
	m, at := c.searches[network], 0
	for a, s := range m { // order-free: each by itself
		if s.until+s.wait <= c.now {
			delete(m, a)
		} else if c.now < s.end {
			at++
		}
	}
	return at < maxSearches && len(m) < maxNotFound
}

// serving lists the hosts whose agents are connected and have devices in a
// network, in order.
func (c *Core) serving(network overlay.UID) (out []overlay.UID) {
	for h, s := range c.sessions { // order-free: sorted below
		if s.open && s.serves[network] && c.host(h) != nil {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, overlay.UID.Compare)
	return out
}
