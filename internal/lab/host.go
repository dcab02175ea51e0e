package lab

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
)

// FailHosts lets hosts fail at once as by a power cut: their agents are killed,
// and no frame comes to them or from them any more. at is called, if it is not
// nil, just before the first link goes. What their kernels hold stays, as on
// hosts that were cut off: RecoverHost gives back both.
func (l *Lab) FailHosts(ctx context.Context, at func(), hosts ...string) error {
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock(false)
	s, err := l.loadReady()
	if err != nil {
		return err
	}
	var agents []Daemon
	for _, h := range hosts {
		d, ok := s.daemon(h)
		if _, known := s.Topology.host(h); !ok || !known {
			return l.noNode(h)
		}
		agents = append(agents, d)
	}
	// The links first: a host that loses its power says no goodbye, and the end
	// of the agent's process would be heard as the end of its stream.
	if at != nil {
		at()
	}
	for _, h := range hosts {
		if err := l.setCables(s, h, false); err != nil {
			return err
		}
	}
	for _, d := range agents {
		if err := d.kill(ctx); err != nil {
			return err
		}
	}
	return nil
}

// RecoverHost gives a host that failed its link and its agent back; changed
// says whether its agent had to be started.
func (l *Lab) RecoverHost(ctx context.Context, host string) (changed bool, err error) {
	unlock, err := l.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock(false)
	s, err := l.loadReady()
	if err != nil {
		return false, err
	}
	n, ok := s.Topology.host(host)
	if !ok {
		return false, l.noNode(host)
	}
	if err := l.setCables(s, host, true); err != nil {
		return false, err
	}
	return l.ensureDaemon(s, n)
}

// setCables takes a host's links down or up at their other ends, so that
// nothing of the host's own is touched.
func (l *Lab) setCables(s *state, host string, up bool) error {
	if s.Topology.Outside {
		if err := l.setCable(outsideNode, host, up); err != nil {
			return err
		}
	}
	return l.setCable("rt", host, up)
}

func (l *Lab) setCable(at, node string, up bool) error {
	router, err := openNS(NSOfNode(l.name, at))
	if err != nil {
		return err
	}
	defer router.Close()
	end, err := router.LinkByName(node)
	if err != nil {
		return fmt.Errorf("link of %s: %w", node, err)
	}
	set, word := router.LinkSetDown, "down"
	if up {
		set, word = router.LinkSetUp, "up"
	}
	if err := set(netlink.Link(end)); err != nil {
		return fmt.Errorf("link of %s %s: %w", node, word, err)
	}
	return nil
}

// host finds a host by name.
func (t Topology) host(name string) (Node, bool) {
	for _, n := range t.HostNodes() {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}
