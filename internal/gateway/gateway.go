// Package gateway keeps a host's side of gateways: of each that this host is a
// candidate of a network namespace with a device on the outside network, a leg
// in each network, and the rules between them.
//
//	outside --- macvlan "up" [ namespace: routes, nftables ] leg --- bridge of a network
//
// What is wanted comes in whole (Set), and what there is is read from the
// kernel each time: namespaces have names and outlive the agent, and nothing
// else remembers. Each gateway has a goroutine of its own, so that one that
// hangs holds up no other.
//
// A leg's device outside the namespace is a port of the network as a guest's
// is, known by the name that stands on it. A gateway that is not active here
// has it out of the bridge, and its addresses outside not configured: all else
// stands ready.
package gateway

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

// Mode says whether a gateway is to be active here.
type Mode uint8

// Modes.
const (
	// Keep: as it is. An agent that has not heard a manager yet does not know
	// better than its kernel.
	Keep Mode = iota
	Standby
	Active
)

// Spec is what is wanted of one gateway on this host.
type Spec struct {
	UID       overlay.UID
	Name      string // for logs
	Mode      Mode
	Uplink    string         // device of the host
	Addresses []netip.Prefix // its own outside
	NextHops  []netip.Addr   // at most one a family
	SNAT      []netip.Addr   // of guests without a floating address
	Floating  []overlay.Floating
	Forwards  []overlay.Forward
	Legs      []Leg // sorted by VNI
}

// Leg is a gateway's port in one network.
type Leg struct {
	VNI       overlay.VNI
	Alias     string // by which the agent knows the port
	MAC       overlay.MAC
	Addresses []netip.Prefix
	Inside    []netip.Prefix // the network's, sorted
	MTU       uint32
}

// Config is what gateways need to work.
type Config struct {
	// NS is the host's network namespace, a file descriptor that stays the
	// caller's; or CurrentNS.
	NS int
	// Prefix begins the names of all namespaces that are made, and of no others.
	Prefix string
	Log    *slog.Logger
	// Told is called with the states of all gateways whenever one has changed.
	// It must not wait.
	Told func([]overlay.GatewayState)
}

// CurrentNS means the namespace that the program runs in.
const CurrentNS = -1

// Bounds of time.
const (
	probeEvery  = 500 * time.Millisecond
	probeWithin = 300 * time.Millisecond
	missesMost  = 3  // probes without an answer after which the uplink is not well
	repairEvery = 10 // probes
	removeEvery = 30 * time.Second
)

// announceAfter says when a gateway announces itself after it became active: the
// first may come too early for a port that is just being opened.
var announceAfter = [...]time.Duration{0, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}

// Gateways are those of one host.
type Gateways struct {
	cfg Config

	mu      sync.Mutex
	keepers map[overlay.UID]*keeper
	states  map[overlay.UID]overlay.GatewayState
	whole   bool // what was set is all: namespaces of others may go
	wake    chan struct{}
}

// New makes them; Run works.
func New(cfg Config) *Gateways {
	return &Gateways{cfg: cfg, keepers: map[overlay.UID]*keeper{}, states: map[overlay.UID]overlay.GatewayState{}, wake: make(chan struct{}, 1)}
}

// Set says what is wanted. whole: what is not in specs is not any more.
func (g *Gateways) Set(specs []Spec, whole bool) {
	g.mu.Lock()
	g.whole = whole
	wanted := map[overlay.UID]bool{}
	for _, s := range specs {
		wanted[s.UID] = true
		k := g.keepers[s.UID]
		if k == nil {
			k = newKeeper(g)
			g.keepers[s.UID] = k
		}
		k.set(&s)
	}
	if whole {
		for uid, k := range g.keepers {
			if !wanted[uid] {
				k.set(nil)
			}
		}
	}
	g.mu.Unlock()
	ring(g.wake)
}

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run works until ctx ends. It leaves the kernel as it is.
func (g *Gateways) Run(ctx context.Context) error {
	if g.cfg.NS == CurrentNS {
		fd, err := ownNS()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		g.cfg.NS = fd
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	again := time.NewTicker(removeEvery) // what could not be removed
	defer again.Stop()
	for {
		select {
		case <-g.wake:
		case <-again.C:
		case <-ctx.Done():
			return nil
		}
		g.mu.Lock()
		for uid, k := range g.keepers {
			if !k.running {
				k.running = true
				wg.Go(func() { k.run(ctx); g.ended(uid, k) })
			}
		}
		whole := g.whole
		g.mu.Unlock()
		if whole {
			g.removeOthers()
		}
	}
}

// ended forgets a keeper whose gateway is gone.
func (g *Gateways) ended(uid overlay.UID, k *keeper) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if k.wanted() != nil { // wanted again meanwhile
		k.running = false
		ring(g.wake)
		return
	}
	delete(g.keepers, uid)
	delete(g.states, uid)
	g.tell()
}

// removeOthers removes namespaces that no gateway has.
func (g *Gateways) removeOthers() {
	names, err := roomNames(g.cfg.Prefix)
	if err != nil {
		g.cfg.Log.Warn("listing namespaces of gateways", "err", err)
	}
	for _, name := range names {
		g.mu.Lock()
		used := !g.whole
		for uid := range g.keepers {
			used = used || g.room(uid) == name
		}
		g.mu.Unlock()
		if used {
			continue
		}
		g.cfg.Log.Info("removing a gateway that is gone", "namespace", name)
		if err := removeRoom(name); err != nil {
			g.cfg.Log.Warn("removing a gateway", "namespace", name, "err", err)
		}
	}
}

func (g *Gateways) room(uid overlay.UID) string { return g.cfg.Prefix + uid.String() }

// stated notes a state, and tells if it is another.
func (g *Gateways) stated(s overlay.GatewayState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old, ok := g.states[s.Gateway]; ok && old == s {
		return
	}
	g.states[s.Gateway] = s
	g.tell()
}

// tell hands out all states; the caller holds mu.
func (g *Gateways) tell() {
	var all []overlay.GatewayState
	for _, s := range g.states {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b overlay.GatewayState) int { return a.Gateway.Compare(b.Gateway) })
	g.cfg.Told(all)
}
