//go:build linux

package cli

import (
	"time"

	"culvert/internal/api"
	"culvert/internal/lab"
)

// The documents that lab verbs print with -o json. Times are in seconds, but
// for round trips, whose unit is in the name.

type labDoc struct {
	APIVersion  string       `json:"apiVersion"`
	Kind        string       `json:"kind"`
	Name        string       `json:"name"`
	Changed     *bool        `json:"changed,omitempty"`
	Seconds     float64      `json:"seconds,omitempty"`
	Flat        bool         `json:"flat"`
	UnderlayMTU int          `json:"underlayMTU"`
	Nodes       []labNodeDoc `json:"nodes"`
	VMs         []vmDoc      `json:"vms"`
}

type labNodeDoc struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	NetNS   string `json:"netns"`
	Daemon  string `json:"daemon"`
	PID     int    `json:"pid"`
}

type vmDoc struct {
	Name      string   `json:"name"`
	Host      string   `json:"host"`
	Tenant    string   `json:"tenant"`
	Network   string   `json:"network"`
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses"`
	Declared  bool     `json:"declared"`
	Ready     bool     `json:"ready"`
	Qemu      bool     `json:"qemu"`
}

func vmDocOf(v lab.VM) vmDoc {
	d := vmDoc{Name: v.Name, Host: v.Host, Tenant: v.Tenant, Network: v.Network, MAC: v.MAC, Addresses: []string{}, Declared: v.Declared, Ready: v.Ready, Qemu: v.Qemu}
	for _, a := range v.Addresses {
		d.Addresses = append(d.Addresses, a.Addr().String())
	}
	return d
}

func statusDoc(st lab.Status) labDoc {
	d := labDoc{APIVersion: api.Version, Kind: "Lab", Name: st.Topology.Name, Flat: st.Topology.Flat, UnderlayMTU: st.Topology.UnderlayMTU, Nodes: []labNodeDoc{}, VMs: []vmDoc{}}
	for _, n := range st.Nodes {
		d.Nodes = append(d.Nodes, labNodeDoc{n.Name, n.Address.Addr().String(), n.Namespace, n.Daemon, n.PID})
	}
	for _, v := range st.VMs {
		d.VMs = append(d.VMs, vmDocOf(v))
	}
	return d
}

type labChange struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Changed    bool   `json:"changed"`
}

type vmChange struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Changed    bool     `json:"changed"`
	Pending    []string `json:"pending"` // hosts that do not hold it yet
	VM         vmDoc    `json:"vm"`
}

type labListDoc struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Items      []labListItem `json:"items"`
}

type labListItem struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	Hosts int    `json:"hosts"`
	VMs   int    `json:"vms"`
}

type labNamespace struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Node       string `json:"node"`
	NetNS      string `json:"netns"`
}

type labTables struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Host       string   `json:"host"`
	Lines      []string `json:"lines"`
}

type labEnvironment struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Config     string `json:"CULVERT_CONFIG"`
}

type pingResultDoc struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Sent       int       `json:"sent"`
	Received   int       `json:"received"`
	Duplicated int       `json:"duplicated"`
	RTT        []float64 `json:"rtt_ms"`
	Answered   []string  `json:"answered"`
}

func pingDoc(r lab.PingResult) pingResultDoc {
	d := pingResultDoc{APIVersion: api.Version, Kind: "LabPing", Sent: r.Sent, Received: r.Received, Duplicated: r.Duplicated, RTT: []float64{}, Answered: append([]string{}, r.Answerers()...)}
	for _, t := range r.RTT {
		d.RTT = append(d.RTT, milliseconds(t))
	}
	return d
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

type migration struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	VM         string   `json:"vm"`
	From       string   `json:"from"`
	To         string   `json:"to"`
	Changed    bool     `json:"changed"`
	Revision   string   `json:"revision"`
	Prepared   float64  `json:"preparedSeconds"`
	Resumed    float64  `json:"resumedSeconds"`
	Exact      float64  `json:"exactSeconds"`
	Slowest    string   `json:"slowest"`
	Hosts      int      `json:"hostsExact"`
	Away       []string `json:"away"`
	PingsSent  int      `json:"pingsSent"`
	PingsLost  int      `json:"pingsLost"`
	// PingsLostRunning are those that were lost while the guest ran.
	PingsLostRunning int `json:"pingsLostRunning"`
}

func migrationDoc(r lab.MigrateResult) migration {
	d := migration{
		APIVersion: api.Version, Kind: "LabMigration", VM: r.VM, From: r.From, To: r.To, Changed: r.Changed, Revision: r.Revision,
		Prepared: r.Prepared.Seconds(), Resumed: r.Resumed.Seconds(), Exact: r.Exact.Seconds(),
		Slowest: r.Slowest, Hosts: r.Hosts, Away: append([]string{}, r.Away...),
	}
	if r.Pings != nil {
		d.PingsSent, d.PingsLost, d.PingsLostRunning = r.Pings.Sent, len(r.Pings.Lost), r.Pings.LostOutside(r.Stopped, r.Running)
	}
	return d
}
