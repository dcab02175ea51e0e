package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/api/rpcerr"
	"culvert/internal/cli"
	"culvert/internal/overlay"
	"culvert/internal/trust"
)

// vxlanPort is the UDP port of VXLAN (RFC 7348 section 5).
const vxlanPort = 4789

// Files of the daemons' data directories.
const (
	managerName = "manager.json"
	agentName   = "agent.json"
	leafName    = "leaf.pem"
)

type managerFile struct {
	Cluster   string `json:"cluster"`
	ID        string `json:"id"`
	Advertise string `json:"advertise"` // address with port that tokens name
}

type agentFile struct {
	Cluster  string   `json:"cluster"`
	Host     string   `json:"host"` // uid
	Name     string   `json:"name"`
	Managers []string `json:"managers"`
	VTEP     string   `json:"vtep,omitempty"`
}

func notYet(path, cure string) error {
	return api.Refuse(api.CodeFile, "The daemon was not started", "there is no "+path, cure)
}

// save writes one of our own JSON files, whole or not at all.
func save(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never errs (crypto/rand)
	return hex.EncodeToString(b)
}

// found makes a cluster: authority, manager's files, operator's key. The agent
// of this machine joins like any other, once the manager runs.
func found(_ context.Context, o cli.InitOptions) error {
	dir := filepath.Join(o.Dir, "manager")
	var me managerFile
	if err := load(filepath.Join(dir, managerName), &me, ""); err == nil {
		fmt.Printf("Cluster %q is here already; nothing was changed.\n", me.Cluster)
		return nil
	}
	advertise, err := advertised(o.Listen)
	if err != nil {
		return err
	}
	me = managerFile{Cluster: "culvert-" + randomHex(2), ID: "manager-" + randomHex(8), Advertise: advertise.String()}
	now := time.Now()
	ca, err := trust.NewCA(me.Cluster, now)
	if err != nil {
		return fmt.Errorf("make authority: %w", err)
	}
	if err := ca.Save(dir); err != nil {
		return fmt.Errorf("save authority: %w", err)
	}
	server, err := ca.IssueServer(me.ID, nil, []netip.Addr{advertise.Addr()}, now)
	if err != nil {
		return fmt.Errorf("issue certificate: %w", err)
	}
	if err := server.Save(filepath.Join(dir, leafName)); err != nil {
		return fmt.Errorf("save certificate: %w", err)
	}
	config, err := newOperator(ca, me, now)
	if err != nil {
		return err
	}
	if err := save(filepath.Join(dir, managerName), me); err != nil {
		return err
	}
	fmt.Printf("Made cluster %q on this machine (%s).\n  authority and manager's files   %s\n  your operator's key             %s\n",
		me.Cluster, me.Advertise, dir, config)
	fmt.Printf("Start the manager:  culvert manager run --dir %s --listen %s\nAdd a host:         culvert token create --role agent\n", dir, me.Advertise)
	return nil
}

// newOperator gives the user who typed init an operator's certificate.
func newOperator(ca *trust.CA, me managerFile, now time.Time) (string, error) {
	op, err := ca.IssueOperator("admin", now)
	if err != nil {
		return "", fmt.Errorf("issue operator's certificate: %w", err)
	}
	return saveOperator(op, me.Cluster, []string{me.Advertise})
}

// saveOperator keeps an operator's certificate where the client verbs look for
// it, and returns the path of their configuration.
func saveOperator(op *trust.Leaf, cluster string, managers []string) (string, error) {
	base, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the user's configuration: %w", err)
	}
	dir := filepath.Join(base, "culvert")
	if err := op.Save(filepath.Join(dir, "operator.pem")); err != nil {
		return "", fmt.Errorf("save operator's certificate: %w", err)
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: op.CA.Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), root, 0o600); err != nil {
		return "", fmt.Errorf("save authority's certificate: %w", err)
	}
	path := filepath.Join(dir, "config.json")
	return path, client.Save(path, client.Config{Cluster: cluster, Managers: managers, CA: "ca.pem", Cert: "operator.pem", Key: "operator.pem"})
}

// advertised is the address that other machines reach the manager by.
func advertised(listen string) (netip.AddrPort, error) {
	bad := func(why string) (netip.AddrPort, error) {
		return netip.AddrPort{}, api.Refuse(api.CodeField, "No cluster was made", why, "Write --listen with an address of this machine and a port: --listen 192.0.2.11:7443")
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return bad(err.Error())
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return bad("the port is " + strconv.Quote(port))
	}
	if host == "" {
		a, err := routeSource("192.0.2.1") // any address behind the default route; nothing is sent
		if err != nil {
			return bad("this machine has no default route to take an address from")
		}
		return netip.AddrPortFrom(a, uint16(n)), nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil || a.IsUnspecified() {
		return bad("the address is " + strconv.Quote(host))
	}
	return netip.AddrPortFrom(a, uint16(n)), nil
}

// routeSource is the address from which the kernel would send to dst.
func routeSource(dst string) (netip.Addr, error) {
	c, err := net.Dial("udp", net.JoinHostPort(dst, "9"))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	ap, err := netip.ParseAddrPort(c.LocalAddr().String())
	return ap.Addr().Unmap(), err
}

// chooseVTEP is the tunnel end point: as told now, else as told at join, else
// the address on the way to the manager.
func chooseVTEP(flags []string, me agentFile) (netip.Addr, error) {
	text := me.VTEP
	if len(flags) > 0 {
		text = flags[0]
	}
	if len(flags) > 1 {
		return netip.Addr{}, api.Refuse(api.CodeLater, "The agent was not started", "several tunnel end points are given", "Give one IPv4 address: --vtep 192.0.2.12")
	}
	if text == "" && len(me.Managers) > 0 {
		host, _, err := net.SplitHostPort(me.Managers[0])
		if err != nil {
			return netip.Addr{}, fmt.Errorf("read manager's address: %w", err)
		}
		return routeSource(host)
	}
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is4() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return netip.Addr{}, api.Refuse(api.CodeField, "Nothing was started", "the tunnel end point is "+strconv.Quote(text), "Write an IPv4 address of this machine: --vtep 192.0.2.12")
	}
	return a, nil
}

// join makes this machine a host of the cluster that made the token.
func join(ctx context.Context, o cli.JoinOptions) error {
	tok, err := trust.ParseToken(o.Token)
	if err != nil {
		return api.Refuse(api.CodeToken, "This machine did not join", err.Error(), "")
	}
	name := o.Host
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return fmt.Errorf("read host name: %w", err)
		}
		name, _, _ = strings.Cut(name, ".")
	}
	if err := overlay.CheckName("host", name); err != nil {
		return api.Refuse(api.CodeField, "This machine did not join", err.Error(), "Name it: culvert join TOKEN --host NAME")
	}
	me := agentFile{Name: name, Managers: []string{tok.Address()}}
	if len(o.VTEP) > 0 {
		me.VTEP = o.VTEP[0]
	}
	if _, err := chooseVTEP(o.VTEP, me); err != nil {
		return err
	}
	key, csr, err := trust.NewRequest()
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read machine id: %w", err)
	}
	r, err := callJoin(ctx, tok, &culvertv1.JoinRequest{
		TokenId: tok.ID[:], TokenSecret: tok.Secret.Bytes(), Csr: csr, HostName: name, MachineId: string(bytes.TrimSpace(machine)),
	})
	if err != nil {
		return err
	}
	leaf, err := trust.NewLeaf(key, r.GetCertificate(), r.GetCaCertificate(), tok.Pin)
	if err != nil {
		return api.Refuse(api.CodePin, "This machine did not join", err.Error(), "")
	}
	return settle(o, leaf, me, r)
}

// settle keeps what the join brought: an agent's in its data directory, an
// operator's in the user's configuration.
func settle(o cli.JoinOptions, leaf *trust.Leaf, me agentFile, r *culvertv1.JoinResponse) error {
	id, err := leaf.Identity()
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	if id.Role == trust.RoleOperator {
		path, err := saveOperator(leaf, r.GetCluster(), r.GetManagers())
		if err != nil {
			return err
		}
		fmt.Printf("You are an operator of cluster %q on this machine (%s).\n", r.GetCluster(), path)
		return nil
	}
	dir := filepath.Join(o.Dir, "agent")
	if err := leaf.Save(filepath.Join(dir, leafName)); err != nil {
		return fmt.Errorf("save certificate: %w", err)
	}
	me.Cluster, me.Host, me.Managers = r.GetCluster(), r.GetHostUid(), r.GetManagers()
	if err := save(filepath.Join(dir, agentName), me); err != nil {
		return err
	}
	fmt.Printf("Joined cluster %q as host %s.\nStart the agent:  culvert agent run --dir %s\n", me.Cluster, me.Name, dir)
	return nil
}

// callJoin asks the manager that the token names, which must show the
// authority that the token pins before it is told the secret.
func callJoin(ctx context.Context, tok trust.Token, req *culvertv1.JoinRequest) (*culvertv1.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	t := &http.Transport{TLSClientConfig: trust.PinnedClientConfig(tok.Pin, time.Now), ForceAttemptHTTP2: true}
	defer t.CloseIdleConnections()
	tr := connecthttp.NewTransport(&http.Client{Transport: t}, "https://"+tok.Address(), connecthttp.WithCompressors(), connecthttp.WithReadMaxBytes(1<<20))
	r, err := culvertv1connect.NewJoiningClient(connect.NewClient(tr)).Join(ctx, req)
	if err == nil {
		return r, nil
	}
	if no := rpcerr.Refusal(err); no != nil {
		return nil, no
	}
	if errors.Is(err, trust.ErrWrongPin) {
		return nil, api.Refuse(api.CodePin, "This machine did not join", "another authority answers at "+tok.Address(), "")
	}
	return nil, api.Refuse(api.CodeUnreachable, "This machine did not join", "the manager at "+tok.Address()+" was not reached ("+err.Error()+")", "Check the way to it, and that it runs: culvert manager run")
}
