package agent

import (
	"context"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/api/rpcerr"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Handler serves the local API. Who may open the socket may use it.
func (a *Agent) Handler() http.Handler {
	srv := connect.NewServer()
	culvertv1connect.RegisterLocalHandler(srv, local{a})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, srv, connecthttp.WithReadMaxBytes(1<<16))
	return mux
}

// ServeSocket serves the local API until ctx ends.
func (a *Agent) ServeSocket(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: a.Handler(), ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // its error is of connections cut, which is meant
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

type local struct{ a *Agent }

func orDefault(tenant string) string {
	if tenant == "" {
		return "default"
	}
	return tenant
}

func checkNames(tenant, port string) error {
	if err := overlay.CheckName("tenant", tenant); err != nil {
		return err
	}
	return overlay.CheckName("port", port)
}

// AttachPort ties a device to a declared port: it writes the port's name on
// the device and puts it into the network's bridge. Both stand in the kernel
// alone, where the agent finds them again.
func (l local) AttachPort(ctx context.Context, req *culvertv1.AttachPortRequest) (*culvertv1.AttachPortResponse, error) {
	tenant := orDefault(req.GetTenant())
	what := "Device " + req.GetDevice() + " was not attached"
	if err := checkNames(tenant, req.GetPort()); err != nil {
		return nil, rpcerr.Encode(api.Refuse(api.CodeField, what, err.Error(), ""))
	}
	if n := len(req.GetDevice()); n < 1 || n > 15 {
		return nil, rpcerr.Encode(api.Refuse(api.CodeDevice, what, "a device's name has 1 to 15 characters", ""))
	}
	vni, port, err := l.find(ctx, tenant, req.GetPort())
	if err != nil {
		return nil, rpcerr.Encode(err)
	}
	if port != nil && l.device(ctx, port.UID) == req.GetDevice() {
		return attached("unchanged", vni, port), nil
	}
	r, err := l.a.order(ctx, hoststate.Op{
		Kind: hoststate.OpAttach, Name: req.GetDevice(), Dev: hoststate.Device{VNI: vni}, Alias: hoststate.PortAlias(tenant, req.GetPort()),
	})
	if err != nil {
		return nil, err
	}
	if r.Class != hoststate.ClassOK {
		return nil, rpcerr.Encode(api.Refuse(api.CodeDevice, what, r.Text, ""))
	}
	return attached("attached", vni, port), nil
}

func attached(action string, vni overlay.VNI, p *overlay.Port) *culvertv1.AttachPortResponse {
	out := &culvertv1.AttachPortResponse{Action: action, Bridge: vni.Bridge()}
	if p != nil {
		out.Mac = p.MAC.String()
		for _, ad := range p.Addresses {
			out.Addresses = append(out.Addresses, ad.String())
		}
	}
	return out
}

// find asks the core, and a manager only if this host was not told.
func (l local) find(ctx context.Context, tenant, name string) (overlay.VNI, *overlay.Port, error) {
	type found struct {
		vni overlay.VNI
		p   *overlay.Port
	}
	ch := make(chan found, 1)
	if !l.a.onLoop(ctx, func() {
		vni, p := l.a.core.FindPort(tenant, name)
		ch <- found{vni, p}
	}) {
		return 0, nil, ctx.Err()
	}
	if f := <-ch; f.vni != 0 {
		return f.vni, f.p, nil
	}
	vni, _, err := l.a.mgrs.Resolve(ctx, PortQuery{Tenant: tenant, Name: name})
	return vni, nil, err
}

func (l local) device(ctx context.Context, port overlay.UID) string {
	ch := make(chan string, 1)
	if !l.a.onLoop(ctx, func() { ch <- l.a.core.Device(port) }) {
		return ""
	}
	return <-ch
}

// DetachPort takes the port's device off the bridge.
func (l local) DetachPort(ctx context.Context, req *culvertv1.DetachPortRequest) (*culvertv1.DetachPortResponse, error) {
	tenant := orDefault(req.GetTenant())
	what := "Port " + req.GetPort() + " was not detached"
	if err := checkNames(tenant, req.GetPort()); err != nil {
		return nil, rpcerr.Encode(api.Refuse(api.CodeField, what, err.Error(), ""))
	}
	_, port, err := l.find(ctx, tenant, req.GetPort())
	if err != nil {
		return nil, rpcerr.Encode(err)
	}
	dev := ""
	if port != nil {
		dev = l.device(ctx, port.UID)
	}
	if dev == "" {
		return &culvertv1.DetachPortResponse{Action: "unchanged"}, nil
	}
	r, err := l.a.order(ctx, hoststate.Op{Kind: hoststate.OpDetach, Name: dev})
	if err != nil {
		return nil, err
	}
	if r.Class != hoststate.ClassOK {
		return nil, rpcerr.Encode(api.Refuse(api.CodeDevice, what, r.Text, ""))
	}
	return &culvertv1.DetachPortResponse{Action: "detached", Device: dev}, nil
}

// Tables reads the kernel anew and dumps it.
func (l local) Tables(ctx context.Context, req *culvertv1.TablesRequest) (*culvertv1.TablesResponse, error) {
	ch := make(chan []overlay.VNI, 1)
	if !l.a.onLoop(ctx, func() { ch <- l.a.core.Networks() }) {
		return nil, ctx.Err()
	}
	vnis := <-ch
	if v := overlay.VNI(req.GetVni()); v != 0 {
		vnis = []overlay.VNI{v}
	}
	all, err := l.a.kernel.Read(ctx, hoststate.Scope{Links: true})
	if err != nil {
		return nil, err
	}
	for _, v := range vnis {
		st, err := l.a.kernel.Read(ctx, hoststate.Scope{VNI: v})
		if err != nil {
			return nil, err
		}
		for k, val := range st.Rows {
			all.Rows[k] = val
		}
	}
	return &culvertv1.TablesResponse{Text: all.String()}, nil
}
