package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

// keeper keeps one gateway.
type keeper struct {
	all     *Gateways
	running bool // of Gateways
	wake    chan struct{}

	mu   sync.Mutex
	spec *Spec // nil: it is gone

	// What follows is the goroutine's own.
	room     *room
	rules    string // text of the rules that stand; empty: not known
	probe    *prober
	misses   int
	answered bool        // since the last change of the uplink
	announce []time.Time // when to announce it, in order
}

func newKeeper(g *Gateways) *keeper { return &keeper{all: g, wake: make(chan struct{}, 1)} }

func (k *keeper) set(s *Spec) {
	k.mu.Lock()
	k.spec = s
	k.mu.Unlock()
	ring(k.wake)
}

func (k *keeper) wanted() *Spec {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.spec
}

// stepError says at which step of the work it failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

func at(step string, err error) error {
	if err == nil {
		return nil
	}
	return &stepError{step, err}
}

// run works until ctx ends or the gateway is gone.
func (k *keeper) run(ctx context.Context) {
	defer k.leave()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for turn := 0; ; {
		s := k.wanted()
		if s == nil {
			k.leave()
			if err := removeRoom(k.all.room(k.uid())); err != nil {
				k.all.cfg.Log.Warn("removing a gateway", "err", err)
			}
			return
		}
		var err error
		if turn%repairEvery == 0 || k.room == nil {
			err = k.converge(s)
			if err != nil {
				k.all.cfg.Log.Debug("gateway not as it should be", "gateway", s.Name, "err", err)
				turn = -1 // again at the next turn
			}
		}
		k.announceNow(s)
		k.state(ctx, s, err)
		var ended bool
		if turn, ended = k.pause(ctx, s, turn, tick.C); ended {
			return
		}
	}
}

// pause waits for the next turn, and announces meanwhile what was moved here.
func (k *keeper) pause(ctx context.Context, s *Spec, turn int, tick <-chan time.Time) (next int, ended bool) {
	for {
		var again <-chan time.Time
		if len(k.announce) > 0 {
			t := time.NewTimer(time.Until(k.announce[0]))
			defer t.Stop()
			again = t.C
		}
		select {
		case <-k.wake:
			return 0, false
		case <-tick:
			return turn + 1, false
		case <-again:
			k.announceNow(s)
		case <-ctx.Done():
			return 0, true
		}
	}
}

// announceNow announces the gateway if that is due.
func (k *keeper) announceNow(s *Spec) {
	if len(k.announce) == 0 || time.Now().Before(k.announce[0]) {
		return
	}
	k.announce = k.announce[1:]
	if err := announce(k.room, s); err != nil {
		k.all.cfg.Log.Debug("announcing a gateway", "gateway", s.Name, "err", err)
	}
}

// uid is the gateway's, also when it is gone.
func (k *keeper) uid() (found overlay.UID) {
	k.all.mu.Lock()
	defer k.all.mu.Unlock()
	for uid, o := range k.all.keepers {
		if o == k {
			found = uid
		}
	}
	return found
}

// leave closes what the goroutine holds open; the kernel stays as it is.
func (k *keeper) leave() {
	if k.probe != nil {
		k.probe.close()
		k.probe = nil
	}
	if k.room != nil {
		k.room.close()
		k.room = nil
	}
}

// converge makes the kernel hold what is wanted. What a gateway that is not
// active must not have goes first, whatever else fails.
func (k *keeper) converge(s *Spec) error {
	host, err := hostRoom(k.all.cfg.NS)
	if err != nil {
		return at("host", err)
	}
	defer host.close()
	if k.room == nil {
		if k.room, err = ensureRoom(k.all.room(s.UID)); err != nil {
			return at("namespace", err)
		}
	}
	w := &work{host: host, room: k.room, spec: s}
	mode := s.Mode
	if mode == Keep {
		mode = Standby
		if w.isActive() {
			mode = Active
		}
	}
	quiet := at("leg", w.dropLegs())
	if mode == Standby {
		quiet, k.announce = errors.Join(quiet, at("addresses", w.quieten())), nil
	}
	if err := at("namespace", w.settings()); err != nil {
		return err
	}
	fresh, err := w.uplink()
	if err != nil {
		return at("uplink device", err)
	}
	if fresh && k.probe != nil {
		k.probe.close()
		k.probe, k.answered, k.misses = nil, false, 0
	}
	if err := at("leg", w.legs(mode == Active)); err != nil {
		return err
	}
	if k.rules, err = ensureRules(k.room, s, k.rules); err != nil {
		return at("rules", err)
	}
	if mode == Active {
		was := w.isActive()
		if err := at("addresses", w.speak()); err != nil {
			return err
		}
		if !was || fresh {
			k.all.cfg.Log.Info("gateway is active here", "gateway", s.Name)
			k.announce = k.announce[:0]
			for _, d := range announceAfter {
				k.announce = append(k.announce, time.Now().Add(d))
			}
		}
	}
	return quiet
}

// state probes the uplink and says how the gateway is.
func (k *keeper) state(ctx context.Context, s *Spec, err error) {
	st := overlay.GatewayState{Gateway: s.UID}
	if k.room != nil {
		w := &work{room: k.room, spec: s}
		st.Active = w.isActive()
		if err == nil {
			if err = k.ask(ctx, s); errors.Is(err, errUndecided) {
				return
			}
		}
	}
	var step *stepError
	if errors.As(err, &step) {
		st.Step, st.Reason = step.step, step.err.Error()
	}
	st.Ready = err == nil
	k.all.stated(st)
}

var errUndecided = errors.New("not known yet")

// ask probes each next hop. One that answered lately is well.
func (k *keeper) ask(ctx context.Context, s *Spec) error {
	if k.probe == nil {
		p, err := newProber(k.room, upName)
		if err != nil {
			return at("uplink device", err)
		}
		k.probe = p
	}
	if up, err := k.room.byName(upName); err != nil || up == nil || up.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		k.answered, k.misses = false, 0
		return at("carrier", errors.Join(fmt.Errorf("device %s has none", s.Uplink), err))
	}
	for _, hop := range s.NextHops {
		switch answered, err := k.probe.ask(ctx, hop, probeWithin); {
		case err != nil:
			k.probe.close()
			k.probe = nil
			return at("carrier", fmt.Errorf("device %s: %w", s.Uplink, err))
		case !answered:
			k.misses++
			if k.misses < missesMost {
				if k.answered {
					return nil
				}
				return errUndecided
			}
			k.answered = false
			return at("next hop", fmt.Errorf("%s does not answer on device %s", hop, s.Uplink))
		}
	}
	k.misses, k.answered = 0, true
	return nil
}
