package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/api/rpcerr"
	"culvert/internal/overlay"
	"culvert/internal/trust"
)

// Bounds of the connection to a manager. A manager that is silent for
// pingAfter is asked for a sign of life.
const (
	dialTimeout = 3 * time.Second
	pingAfter   = 5 * time.Second
	pingTimeout = 10 * time.Second
	maxDown     = 8 << 20 // bytes of one message of a manager
)

// Dialer reaches the managers by mutual TLS, one after the other.
type Dialer struct {
	client culvertv1connect.AgentsClient
	tls    *tls.Config
	dial   func(context.Context) (net.Conn, error)
}

// NewDialer makes the way to managers, addresses with port.
func NewDialer(managers []string, anchor *trust.Anchor, leaf trust.LeafFunc) *Dialer {
	d := &Dialer{tls: trust.ClientConfig(anchor, leaf)}
	d.dial = func(ctx context.Context) (net.Conn, error) {
		var errs []error
		for _, m := range managers {
			c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", m)
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
	t := &http.Transport{
		TLSClientConfig:   d.tls,
		ForceAttemptHTTP2: true, // a tls.Config of one's own switches it off otherwise
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.dial(ctx) },
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	tr := connecthttp.NewTransport(&http.Client{Transport: whole{t}}, "https://manager", connecthttp.WithCompressors(), connecthttp.WithReadMaxBytes(maxDown))
	d.client = culvertv1connect.NewAgentsClient(connect.NewClient(tr))
	return d
}

// Attach opens a stream.
func (d *Dialer) Attach(ctx context.Context) (Stream, error) {
	st, err := d.client.Attach(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	return &wire{st: st, d: d}, nil
}

// probe connects and waits for the manager's first word. In TLS 1.3 a client
// learns that it is refused only at its first read, and the HTTP/2 client may
// report that as a connection that "could not be established".
func (d *Dialer) probe() error {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	raw, err := d.dial(ctx)
	if err != nil {
		return err
	}
	c := tls.Client(raw, d.tls.Clone())
	defer c.Close()
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetReadDeadline(deadline); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1)) // HTTP/2 servers speak first (RFC 9113 section 3.4)
	return err
}

// Resolve asks for a declared port.
func (d *Dialer) Resolve(ctx context.Context, q PortQuery) (overlay.VNI, *overlay.Port, error) {
	what := "Port " + q.String() + " was not found"
	r, err := d.client.Resolve(ctx, &culvertv1.ResolveRequest{Tenant: q.Tenant, Port: q.Name, Vni: uint32(q.VNI), Mac: q.MAC[:]})
	if err != nil {
		if no := rpcerr.Refusal(err); no != nil {
			return 0, nil, no
		}
		return 0, nil, api.Refuse(api.CodeUnreachable, what, "this host was not told of it, and no manager answers", "")
	}
	uid, err := overlay.UIDFromBytes(r.GetPort())
	if err != nil || len(r.GetMac()) != 6 {
		return 0, nil, api.Refuse(api.CodeServer, what, "the manager's answer is not understood", "")
	}
	p := &overlay.Port{Meta: overlay.Meta{UID: uid, Name: r.GetName()}, MAC: overlay.MAC(r.GetMac()), Hosts: r.GetHosts()}
	return overlay.VNI(r.GetVni()), p, nil
}

// refusal is the manager's refusal in err, or says in the same form that one
// side's certificate was not believed; else err. An alert of TLS comes as the
// text of another error once HTTP/2 has read it.
func refusal(err error) error {
	if no := rpcerr.Refusal(err); no != nil {
		return no
	}
	const what = "The stream was not opened"
	var peer *trust.PeerError
	if errors.As(err, &peer) {
		return api.Refuse(api.CodeOtherCluster, what, "the manager's "+peer.Error(), "")
	}
	if _, alert, ok := strings.Cut(err.Error(), "remote error: tls: "); ok {
		return api.Refuse(api.CodeCertificate, what, "the manager does not accept this host's certificate ("+alert+")",
			"Join this machine anew: culvert token create --role agent")
	}
	return err
}

// wire is a stream of connect.
type wire struct {
	st    culvertv1connect.AgentsAttachClientStream
	d     *Dialer
	heard bool // the manager has said something
}

func (w *wire) Send(u api.Up) error { return w.st.Send(api.UpPB(u)) }

func (w *wire) Receive() (api.Down, error) {
	pb, err := w.st.Receive()
	if err != nil {
		return api.Down{}, w.why(err)
	}
	w.heard = true
	return api.DownFromPB(pb)
}

// why is the reason of a stream's end. Of one that never began, and of which
// nobody has said why, it asks once more.
func (w *wire) why(err error) error {
	err = refusal(err)
	var no *api.Refusal
	var op *net.OpError
	if w.heard || errors.As(err, &no) || errors.As(err, &op) && op.Op == "dial" || errors.Is(err, context.Canceled) {
		return err
	}
	if asked := w.d.probe(); asked != nil {
		if asked = refusal(asked); errors.As(asked, &no) {
			return asked
		}
	}
	return err
}

func (w *wire) Close() { _ = w.st.Close() } // the stream is over whatever it says
