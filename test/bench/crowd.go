package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"culvert/internal/agent"
	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
	"culvert/internal/overlay"
	"culvert/internal/trust"
)

// crowdVerb begins the command line of the process that stands for a host with
// thousands of VMs: it joined like any host, and speaks with the manager over
// the real stream with a real certificate, but has no kernel.
const crowdVerb = "crowd"

const crowdName = "crowd"

// crowdVTEP is where its endpoints are; nobody is there.
var crowdVTEP = netip.AddrFrom4([4]byte{172, 20, 200, 1})

// order is a line to the process: claim all of these, or leave them.
type order struct {
	Network overlay.UID
	List    []endpoint
	Leave   bool
}

// answer is a line from it.
type answer struct {
	Rev overlay.Rev // the newest of the bindings
	Err string
}

// crowd is the process.
type crowd struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func newCrowd(ctx context.Context, o options, w *world, labName string) (*crowd, error) {
	token, err := w.api.CreateToken(ctx, &culvertv1.CreateTokenRequest{Role: "agent", ExpiresSeconds: 600, Uses: 1})
	if err != nil {
		return nil, fmt.Errorf("make token: %w", err)
	}
	dir := filepath.Join(filepath.Dir(w.lab.ClientConfig()), crowdName)
	ns := lab.NSOfNode(labName, "m1")
	join := exec.CommandContext(ctx, o.culvert, "join", token.GetToken(), "--dir", dir, "--vtep", crowdVTEP.String(), "--host", crowdName, "--no-start")
	join.Stderr = os.Stderr
	if err := lab.InNS(ns, join.Start); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	if err := join.Wait(); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	c := &crowd{cmd: exec.Command("/proc/self/exe", crowdVerb, filepath.Join(dir, "agent"))}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(out)
	if err := lab.InNS(ns, c.cmd.Start); err != nil {
		return nil, fmt.Errorf("start crowd: %w", err)
	}
	return c, nil
}

func (c *crowd) close() error {
	err := c.in.Close()
	return errors.Join(err, c.cmd.Wait())
}

func (c *crowd) ask(o order) (overlay.Rev, error) {
	if err := c.tell(o); err != nil {
		return overlay.Rev{}, err
	}
	return c.hear()
}

func (c *crowd) tell(o order) error {
	if err := json.NewEncoder(c.in).Encode(o); err != nil {
		return fmt.Errorf("tell crowd: %w", err)
	}
	return nil
}

func (c *crowd) hear() (overlay.Rev, error) {
	var a answer
	if err := c.out.Decode(&a); err != nil {
		return a.Rev, fmt.Errorf("hear crowd: %w", err)
	}
	if a.Err != "" {
		return a.Rev, errors.New(a.Err)
	}
	return a.Rev, nil
}

func (c *crowd) claim(network overlay.UID, list []endpoint) (overlay.Rev, error) {
	return c.ask(order{Network: network, List: list})
}

func (c *crowd) leave(network overlay.UID, list []endpoint) (overlay.Rev, error) {
	return c.ask(order{Network: network, List: list, Leave: true})
}

// host is the process's own side.
type host struct {
	st      agent.Stream
	session uint64
	ups     chan api.Up
	answers chan api.Answer
	base    map[overlay.MAC]overlay.Rev // bindings in force
	nextID  uint64
}

// runCrowd does what comes in, a line each, until it ends.
func runCrowd(dir string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h, err := connect(ctx, dir)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- h.send() }()
	go func() { ended <- h.receive() }()
	orders := json.NewDecoder(bufio.NewReader(in))
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var a answer
		if a.Rev, err = h.do(o, ended); err != nil {
			a.Err = err.Error()
		}
		if err := json.NewEncoder(out).Encode(a); err != nil {
			return err
		}
	}
}

func connect(ctx context.Context, dir string) (*host, error) {
	var me struct{ Managers []string }
	b, err := os.ReadFile(filepath.Join(dir, "agent.json"))
	if err == nil {
		err = json.Unmarshal(b, &me)
	}
	if err != nil {
		return nil, err
	}
	leaf, err := trust.LoadLeaf(filepath.Join(dir, "leaf.pem"))
	if err != nil {
		return nil, err
	}
	anchor, err := leaf.Anchor(time.Now)
	if err != nil {
		return nil, err
	}
	h := &host{ups: make(chan api.Up, 1000), answers: make(chan api.Answer, 1000), base: map[overlay.MAC]overlay.Rev{}}
	if h.st, err = agent.NewDialer(me.Managers, anchor, trust.Fixed(leaf)).Attach(ctx); err != nil {
		return nil, err
	}
	hello := api.Hello{Protocol: agent.Protocol, Least: agent.Protocol, Version: "bench", BootID: "bench", VTEP: crowdVTEP}
	if err := h.st.Send(api.Up{Hello: &hello}); err != nil {
		return nil, err
	}
	d, err := h.st.Receive()
	if err != nil {
		return nil, err
	}
	if d.Welcome == nil {
		return nil, errors.New("no welcome")
	}
	h.session = d.Welcome.Session
	return h, nil
}

func (h *host) send() error {
	for u := range h.ups {
		if err := h.st.Send(u); err != nil {
			return err
		}
	}
	return nil
}

// receive acknowledges at once what it is told: this host holds nothing.
func (h *host) receive() error {
	for {
		d, err := h.st.Receive()
		if err != nil {
			return err
		}
		if d.Items != nil && !d.Items.UpTo.IsZero() {
			h.ups <- api.Up{Ack: &api.Ack{Rev: d.Items.UpTo}}
		}
		for _, a := range d.Answers {
			h.answers <- a
		}
	}
}

// do claims or leaves endpoints and waits for every answer.
func (h *host) do(o order, ended <-chan error) (newest overlay.Rev, err error) {
	asked := map[uint64]overlay.MAC{}
	var claims []api.Claim
	for _, e := range o.List {
		h.nextID++
		asked[h.nextID] = e.MAC
		claims = append(claims, api.Claim{
			ID: h.nextID, Network: o.Network, MAC: e.MAC, Port: e.UID, Base: h.base[e.MAC], Evidence: overlay.EvidenceDevice, Leave: o.Leave,
		})
	}
	go func() {
		for from := 0; from < len(claims); from += batch {
			h.ups <- api.Up{Claims: &api.Claims{Session: h.session, Claims: claims[from:min(from+batch, len(claims))]}}
		}
	}()
	for len(asked) > 0 {
		select {
		case a := <-h.answers:
			mac, ok := asked[a.ID]
			if !ok {
				continue
			}
			delete(asked, a.ID)
			if !a.Accepted {
				return newest, fmt.Errorf("claim of %s refused: %s", mac, a.Reason)
			}
			h.base[mac] = a.Binding
			if newest.Less(a.Binding) {
				newest = a.Binding
			}
		case err := <-ended:
			return newest, fmt.Errorf("stream ended: %w", err)
		}
	}
	return newest, nil
}
