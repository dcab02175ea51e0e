package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
)

// takenOverIn is what a gateway's take-over must not exceed, in ms.
const takenOverIn = 1000

// outsideRouter is the router on a lab's network outside.
var outsideRouter = netip.MustParseAddr("203.0.113.1")

// takeovers measures for how long a guest that pings a router outside 1,000
// times a second gets no answer when the host that has its gateway fails as by a
// power cut: the sum of the pings lost, 1 ms each.
func takeovers(ctx context.Context, o options, out *printer) (err error) {
	fmt.Fprintf(os.Stderr, "building a lab of 3 hosts with a gateway, to let it be taken over %d times\n", o.deaths)
	l, err := lab.New("benchgateway", lab.Config{Culvert: []string{o.culvert}})
	if err != nil {
		return err
	}
	defer func() {
		_, down := l.Down(context.WithoutCancel(ctx))
		err = errors.Join(err, down)
	}()
	if _, err := l.Up(ctx, lab.Topology{Name: "benchgateway", Hosts: 3, Outside: true}, true); err != nil {
		return err
	}
	cfg, err := client.Load(l.ClientConfig())
	if err != nil {
		return err
	}
	c, err := client.New(cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := makeGateway(ctx, l, c); err != nil {
		return err
	}
	var lost sample
	for i := range o.deaths {
		n, err := takeover(ctx, l, c)
		if err != nil {
			return fmt.Errorf("take-over %d: %w", i, err)
		}
		lost = append(lost, n)
	}
	f := newFigure("gateway take-over, answers lost", "ms", 3, 0, lost, bound{must: takenOverIn, p99: takenOverIn})
	f.Note = fmt.Sprintf("max %.0f", lost.quantile(1))
	return out.figure(f)
}

// makeGateway makes a network with a gateway on h1 and h2, and a guest on h3
// that sends by it, and waits until all is ready.
func makeGateway(ctx context.Context, l *lab.Lab, c *client.Client) error {
	meta := func(name string) *culvertv1.Metadata {
		return &culvertv1.Metadata{Name: name, Tenant: api.DefaultTenant}
	}
	_, err := c.Put(ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: []*culvertv1.Resource{
		api.Wrap(&culvertv1.Domain{ApiVersion: api.Version, Kind: "Domain", Metadata: meta("shop")}),
		api.Wrap(&culvertv1.Network{ApiVersion: api.Version, Kind: "Network", Metadata: meta("web"),
			Spec: &culvertv1.NetworkSpec{Subnets: []*culvertv1.Subnet{{Prefix: "10.20.0.0/24"}}, Domain: "shop"}}),
		api.Wrap(&culvertv1.Gateway{ApiVersion: api.Version, Kind: "Gateway", Metadata: meta("out"),
			Spec: &culvertv1.GatewaySpec{Domain: "shop", Hosts: []string{"h1", "h2"},
				Uplink: &culvertv1.GatewayUplink{Device: "out0", Addresses: []string{"203.0.113.10/24"}, NextHops: []string{outsideRouter.String()}}}}),
	}})
	if err != nil {
		return fmt.Errorf("make gateway: %w", err)
	}
	if _, err := l.CreateVM(ctx, lab.VMSpec{Name: "guest", Host: "h3", Network: "web"}); err != nil {
		return err
	}
	if err := bothReady(ctx, c); err != nil {
		return err
	}
	return await(ctx, func() (bool, error) { // every host is known to answer echo requests, and can die
		log, err := os.ReadFile(filepath.Join(filepath.Dir(l.ClientConfig()), "m1.log"))
		return strings.Count(string(log), "host answers echo requests") >= 3, err
	})
}

// gatewayHosts is which host has the gateway, and which is ready to.
func gatewayHosts(ctx context.Context, c *client.Client) (active, ready string, err error) {
	res, err := c.List(ctx, &culvertv1.ListRequest{Kind: "gateway", Name: "out"})
	if err != nil || len(res.GetItems()) != 1 {
		return "", "", errors.Join(errors.New("no gateway is listed"), err)
	}
	for _, h := range res.GetItems()[0].GetGateway().GetStatus().GetHosts() {
		switch h.GetState() {
		case "active":
			active = h.GetHost()
		case "ready":
			ready = h.GetHost()
		}
	}
	return active, ready, nil
}

func bothReady(ctx context.Context, c *client.Client) error {
	return await(ctx, func() (bool, error) {
		active, ready, err := gatewayHosts(ctx, c)
		return active != "" && ready != "", err
	})
}

// takeover lets the host fail that has the gateway, and gives it back. It
// returns for how many milliseconds the guest got no answers.
func takeover(ctx context.Context, l *lab.Lab, c *client.Client) (float64, error) {
	victim, _, err := gatewayHosts(ctx, c)
	if err != nil {
		return 0, err
	}
	err = await(ctx, func() (bool, error) {
		r, err := l.PingVM(ctx, "guest", outsideRouter.String(), lab.PingOptions{Count: 3, Interval: 20 * time.Millisecond, Wait: 200 * time.Millisecond})
		return r.Result.Received == 3, err
	})
	if err != nil {
		return 0, err
	}
	const before, after = 300, 2500
	failed := make(chan error, 1)
	r, err := l.PingVM(ctx, "guest", outsideRouter.String(), lab.PingOptions{Count: before + after, Interval: time.Millisecond, Wait: time.Second,
		At: map[int]func(){before: func() {
			go func() { failed <- l.FailHosts(ctx, nil, victim) }()
		}}})
	if err != nil {
		return 0, err
	}
	if err := <-failed; err != nil {
		return 0, err
	}
	if n := len(r.Result.Lost); n > 0 && (r.Result.Lost[0] < before || r.Result.Lost[n-1] == before+after-1) {
		return 0, fmt.Errorf("answers were missing before the host failed, or at the end: %d of %d", n, r.Result.Sent)
	}
	if _, err := l.RecoverHost(ctx, victim); err != nil {
		return 0, err
	}
	return float64(len(r.Result.Lost)), bothReady(ctx, c)
}
