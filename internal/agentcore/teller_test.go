package agentcore

import (
	"fmt"
	"slices"
	"strings"

	"culvert/internal/overlay"
)

// teller is a manager that tells one network's log as it is asked to: whole, or
// on demand.
type teller struct {
	r          *rig
	net        string
	log        map[overlay.Key]Item // live items
	told       map[overlay.Key]Item // on demand, in this subscription
	wants      map[overlay.Want]bool
	members    []string
	subscribed bool
	onDemand   bool
	mute       bool // it hears, and answers nothing
	unsaid     []Demand
}

func newTeller(r *rig, network string) *teller {
	return &teller{r: r, net: network, log: map[overlay.Key]Item{}, wants: map[overlay.Want]bool{}}
}

// put changes the store, and tells it if it is to be told.
func (s *teller) put(lines ...string) {
	var e Items
	for _, l := range lines {
		it := s.r.item(s.net, l)
		k := overlay.KeyOf(it.Rec)
		if it.Gone {
			delete(s.log, k)
		} else {
			s.log[k] = it
		}
		if _, was := s.told[k]; s.subscribed && (!s.onDemand || was || !it.Gone && s.passes(it)) {
			s.tell(&e, it)
		}
	}
	if s.subscribed {
		s.end(&e, false)
		s.r.step(e)
	}
}

func (s *teller) tell(e *Items, it Item) {
	e.Items = append(e.Items, it)
	if s.told[overlay.KeyOf(it.Rec)] = it; it.Gone {
		delete(s.told, overlay.KeyOf(it.Rec))
	}
}

func (s *teller) end(e *Items, full bool) {
	at := overlay.Rev{Epoch: s.r.epoch, N: s.r.rev}
	var sum overlay.Sum
	for k, it := range s.told {
		sum.Add(k, it.Rev)
	}
	e.Ends, e.UpTo = []End{{Network: netUID(s.net), Full: full, Sum: sum, Sent: at, OnDemand: s.onDemand}}, at
}

func (s *teller) named(w overlay.Want, it Item) bool {
	switch x := it.Rec.(type) {
	case *overlay.Endpoint:
		return w.MAC == x.MAC || w.Address.IsValid() && slices.Contains(x.Addresses, w.Address)
	case *overlay.Port:
		return w.MAC == x.MAC || w.Name != "" && w.Name == x.Name
	}
	return false
}

func (s *teller) passes(it Item) bool {
	own := func(e *overlay.Endpoint) bool {
		return e.Host == s.r.c.cfg.Self || e.From == s.r.c.cfg.Self || slices.Contains(e.Pre, s.r.c.cfg.Self)
	}
	for w := range s.wants {
		if s.named(w, it) {
			return true
		}
	}
	if e, ok := it.Rec.(*overlay.Endpoint); ok {
		return own(e)
	}
	for _, x := range s.told {
		if e, ok := x.Rec.(*overlay.Endpoint); ok && own(e) && e.Port == it.Rec.(*overlay.Port).UID {
			return true
		}
	}
	return false
}

func (s *teller) sorted() (out []Item) {
	for _, it := range s.log {
		out = append(out, it)
	}
	slices.SortFunc(out, func(a, b Item) int { return a.Rev.Compare(b.Rev) })
	return out
}

// pass is a full pass.
func (s *teller) pass() {
	e := Items{Begins: []overlay.UID{netUID(s.net)}}
	s.told = map[overlay.Key]Item{}
	for range 2 { // ports of own endpoints come with them
		for _, it := range s.sorted() {
			if _, was := s.told[overlay.KeyOf(it.Rec)]; !was && (!s.onDemand || s.passes(it)) {
				s.tell(&e, it)
			}
		}
	}
	if s.onDemand {
		for _, h := range s.members {
			e.Members = append(e.Members, overlay.Member{Network: netUID(s.net), Host: hostUID(h)})
		}
		for w := range s.wants {
			e.Told = append(e.Told, w)
		}
		slices.SortFunc(e.Told, func(a, b overlay.Want) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	s.end(&e, true)
	s.r.step(e)
}

// member changes who has endpoints: "h2" or "-h2".
func (s *teller) member(h string) {
	name, gone := strings.CutPrefix(h, "-")
	if s.members = slices.DeleteFunc(s.members, func(x string) bool { return x == name }); !gone {
		s.members = append(s.members, name)
	}
	if s.subscribed && s.onDemand {
		s.r.step(Items{Members: []overlay.Member{{Network: netUID(s.net), Host: hostUID(name), Gone: gone}}})
	}
}

// hear takes what the core says, answers what is wanted, and returns all as lines.
func (s *teller) hear() string {
	var out []string
	for {
		u := s.r.c.NextUp()
		if u.Empty() {
			return strings.Join(out, "\n")
		}
		out = append(out, upLines(u)...)
		for _, d := range u.Demands {
			if d.Network == netUID(s.net) {
				s.unsaid = append(s.unsaid, d)
			}
		}
		if !s.mute {
			s.answer()
		}
		for _, p := range u.Add {
			if p.Network == netUID(s.net) {
				s.subscribed, s.onDemand = true, p.OnDemand
				s.pass()
			}
		}
		if slices.Contains(u.Remove, netUID(s.net)) {
			s.subscribed, s.wants = false, map[overlay.Want]bool{}
		}
	}
}

// answer takes what was said of wants.
func (s *teller) answer() {
	said := s.unsaid
	s.unsaid = nil
	for _, d := range said {
		var e Items
		if d.Drop {
			delete(s.wants, d.Want)
			for k, it := range s.told {
				if s.named(d.Want, it) && !s.passes(it) {
					delete(s.told, k)
				}
			}
			s.r.step(Items{Dropped: []overlay.Want{d.Want}})
			s.end(&e, false)
			s.r.step(e)
			continue
		}
		if s.wants[d.Want] = true; !s.subscribed {
			continue
		}
		for _, it := range s.sorted() {
			if s.named(d.Want, it) {
				s.tell(&e, it)
			}
		}
		e.Told = []overlay.Want{d.Want}
		s.end(&e, false)
		s.r.step(e)
	}
}
