package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// The JSON documents of this package. Fields are added, never renamed or
// removed, within one apiVersion.
type (
	jsonList struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Revision   string            `json:"revision"`
		Items      []json.RawMessage `json:"items"`
	}
	jsonEvent struct {
		APIVersion string          `json:"apiVersion"`
		Kind       string          `json:"kind"`
		Type       string          `json:"type"` // existing, synced, changed, deleted
		Revision   string          `json:"revision"`
		Resource   json.RawMessage `json:"resource,omitempty"`
	}
	jsonChanges struct {
		APIVersion string       `json:"apiVersion"`
		Kind       string       `json:"kind"`
		Revision   string       `json:"revision"` // 0 if nothing changed
		Changes    []jsonChange `json:"changes"`
		Wait       *jsonWait    `json:"wait,omitempty"` // absent if nobody waited
	}
	jsonChange struct {
		Action   string          `json:"action"` // created, changed, unchanged
		Resource json.RawMessage `json:"resource"`
	}
	jsonDeleted struct {
		APIVersion string    `json:"apiVersion"`
		Kind       string    `json:"kind"`
		Revision   string    `json:"revision"`
		Deleted    []string  `json:"deleted"` // "port default/vm1"
		Wait       *jsonWait `json:"wait,omitempty"`
	}
	jsonWait struct {
		Done  bool       `json:"done"`
		Hosts []jsonHost `json:"hosts"`
	}
	jsonHost struct {
		Host            string  `json:"host"`
		State           string  `json:"state"` // exact, behind, away
		Seconds         float64 `json:"seconds"`
		AppliedRevision string  `json:"appliedRevision"`
	}
)

func waitJSON(w *culvertv1.WaitResponse) *jsonWait {
	if w == nil {
		return nil
	}
	out := &jsonWait{Done: w.GetDone(), Hosts: []jsonHost{}}
	for _, h := range w.GetHosts() {
		out.Hosts = append(out.Hosts, jsonHost{h.GetHost(), h.GetState(), h.GetSeconds(), h.GetAppliedRevision()})
	}
	return out
}

func (s *session) printList(kind overlay.Kind, list *culvertv1.ListResponse) error {
	switch s.output {
	case "json":
		doc := jsonList{APIVersion: api.Version, Kind: api.KindName(kind) + "List", Revision: list.GetRevision(), Items: []json.RawMessage{}}
		for _, r := range list.GetItems() {
			doc.Items = append(doc.Items, api.EncodeJSON(r))
		}
		return writeJSON(s.env.Stdout, doc)
	case "yaml":
		for _, r := range list.GetItems() {
			if _, err := fmt.Fprintf(s.env.Stdout, "---\n%s", api.EncodeYAML(r)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(list.GetItems()) == 0 {
		_, err := fmt.Fprintf(s.env.Stderr, "There is no %s.\n", kind)
		return err
	}
	rows := [][]string{columns[kind]}
	for _, r := range list.GetItems() {
		rows = append(rows, row(r, s.env.Now()))
	}
	return table(s.env.Stdout, rows)
}

func (s *session) printOne(r *culvertv1.Resource) error {
	if s.output == "json" {
		return writeJSON(s.env.Stdout, json.RawMessage(api.EncodeJSON(r)))
	}
	_, err := s.env.Stdout.Write(api.EncodeYAML(r)) // what is shown can be applied
	return err
}

func (s *session) printEvent(kind overlay.Kind, e *culvertv1.WatchResponse) error {
	switch s.output {
	case "json":
		doc := jsonEvent{APIVersion: api.Version, Kind: api.KindName(kind) + "Event", Type: e.GetType(), Revision: e.GetRevision()}
		if e.GetResource() != nil {
			doc.Resource = api.EncodeJSON(e.GetResource())
		}
		return writeJSONLine(s.env.Stdout, doc)
	case "yaml":
		return &overlay.FieldError{Field: "--output", Value: "yaml", Allowed: "text or json for a watch"}
	}
	if e.GetType() == "synced" {
		_, err := fmt.Fprintf(s.env.Stderr, "That is all at revision %s; changes follow.\n", e.GetRevision())
		return err
	}
	cells := row(e.GetResource(), s.env.Now())
	_, err := fmt.Fprintf(s.env.Stdout, "%-8s  %6s  %s %s\n", e.GetType(), e.GetRevision(), kind, strings.Join(cells, "  "))
	return err
}

func (s *session) printChanges(reply *culvertv1.PutResponse, wait *culvertv1.WaitResponse) error {
	if s.output == "json" {
		doc := jsonChanges{APIVersion: api.Version, Kind: "Changes", Revision: reply.GetRevision(), Changes: []jsonChange{}, Wait: waitJSON(wait)}
		for _, c := range reply.GetChanges() {
			doc.Changes = append(doc.Changes, jsonChange{c.GetAction(), api.EncodeJSON(c.GetResource())})
		}
		return writeJSON(s.env.Stdout, doc)
	}
	w := s.env.Stdout
	changed := 0
	for _, c := range reply.GetChanges() {
		kind, m := api.KindOf(c.GetResource()), api.MetadataOf(c.GetResource())
		line := fmt.Sprintf("%s %s %s", kind, title(m), c.GetAction())
		if c.GetAction() != "unchanged" {
			changed++
			if d := detail(c.GetResource()); d != "" {
				line += ": " + d
			}
			line += " (revision " + reply.GetRevision() + ")"
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	if len(reply.GetChanges()) == 1 && changed == 1 {
		c := reply.GetChanges()[0]
		if n := c.GetResource().GetNetwork(); n != nil && c.GetAction() == "created" {
			return printIndented(w, bridgeLine(n, wait))
		}
		if p := c.GetResource().GetPort(); p != nil && c.GetAction() == "created" {
			if err := printIndented(w, waiting4(p)); err != nil {
				return err
			}
		}
	}
	return printIndented(w, summary(wait))
}

// waiting4 says what a new port still needs.
func waiting4(p *culvertv1.Port) string {
	name := title(p.GetMetadata())
	if p.GetStatus().GetHost() != "" {
		return ""
	}
	attach := "culvert attach " + name + " --dev tap0"
	if vm := p.GetSpec().GetVm(); vm != "" && p.GetStatus().GetBridge() != "" {
		return fmt.Sprintf("waiting for a host: start the VM '%s' on bridge %s anywhere; or on a host: %s", vm, p.GetStatus().GetBridge(), attach)
	}
	return "waiting for a host; on one: " + attach
}

func (s *session) printDeleted(kind overlay.Kind, m *culvertv1.Metadata, reply *culvertv1.DeleteResponse, wait *culvertv1.WaitResponse) error {
	if s.output == "json" {
		return writeJSON(s.env.Stdout, jsonDeleted{api.Version, "Deleted", reply.GetRevision(), append([]string{}, reply.GetDeleted()...), waitJSON(wait)})
	}
	more := ""
	if n := len(reply.GetDeleted()) - 1; n > 0 {
		more = " with " + count(n, "port")
	}
	if _, err := fmt.Fprintf(s.env.Stdout, "%s %s deleted%s (revision %s)\n", kind, title(m), more, reply.GetRevision()); err != nil {
		return err
	}
	return printIndented(s.env.Stdout, summary(wait))
}

// detail is what a person wants to know of a new or changed resource.
func detail(r *culvertv1.Resource) string {
	switch body := r.GetBody().(type) {
	case *culvertv1.Resource_Network:
		st := body.Network.GetStatus()
		parts := []string{fmt.Sprintf("VNI %d", st.GetVni())}
		switch g := st.GetGateways(); len(g) {
		case 0:
		case 1:
			parts = append(parts, "gateway "+g[0])
		default:
			parts = append(parts, "gateways "+strings.Join(g, " "))
		}
		return strings.Join(append(parts, fmt.Sprintf("MTU %d", st.GetMtu())), ", ")
	case *culvertv1.Resource_Port:
		st := body.Port.GetStatus()
		return strings.Join(append(append([]string{}, st.GetAddresses()...), st.GetMac()), ", ")
	case *culvertv1.Resource_Policy:
		return way(body.Policy) + " in domain " + body.Policy.GetSpec().GetDomain()
	case *culvertv1.Resource_Gateway:
		return gatewaySummary(body.Gateway)
	}
	return ""
}

// way is who may send to whom by a policy.
func way(p *culvertv1.NetworkPolicy) string {
	arrow := " <-> "
	if p.GetStatus().GetDirection() == "forward" {
		arrow = " -> "
	}
	line := p.GetSpec().GetFrom() + arrow + p.GetSpec().GetTo()
	if p.GetSpec().GetMode() == "bridged" {
		line += " (bridged)"
	}
	return line
}

// columns are the heads of tables. Spaces behind one keep the column from
// jumping with every usual value.
var columns = map[overlay.Kind][]string{
	overlay.KindTenant:   {"TENANT", "NETWORKS", "PORTS"},
	overlay.KindDomain:   {"DOMAIN", "NETWORKS", "POLICIES"},
	overlay.KindNetwork:  {"NETWORK", "VNI", "SUBNETS", "MTU", "DOMAIN", "PORTS", "ENDPOINTS", "HOSTS"},
	overlay.KindPolicy:   {"POLICY", "DOMAIN", "WAY"},
	overlay.KindGateway:  {"GATEWAY", "DOMAIN", "ADDRESS", "NETWORKS", "ACTIVE", "STATE", "HOSTS"},
	overlay.KindPort:     {"PORT", "NETWORK", "ADDRESS   ", "HOST", "STATE", "SINCE ", "TRAFFIC"},
	overlay.KindHost:     {"HOST", "VTEP", "STATE", "REVISION", "CHECKED", "ENDPOINTS", "PROBLEMS"},
	overlay.KindEndpoint: {"ENDPOINT", "NETWORK", "MAC", "ADDRESS", "HOST", "STATE", "SINCE", "EVIDENCE"},
}

func row(r *culvertv1.Resource, now time.Time) []string {
	switch body := r.GetBody().(type) {
	case *culvertv1.Resource_Tenant:
		st := body.Tenant.GetStatus()
		return []string{title(body.Tenant.GetMetadata()), fmt.Sprint(st.GetNetworks()), fmt.Sprint(st.GetPorts())}
	case *culvertv1.Resource_Network:
		n, st := body.Network, body.Network.GetStatus()
		var subnets []string
		for _, s := range n.GetSpec().GetSubnets() {
			subnets = append(subnets, s.GetPrefix())
		}
		return []string{title(n.GetMetadata()), fmt.Sprint(st.GetVni()), orDash(strings.Join(subnets, " ")), fmt.Sprint(st.GetMtu()), orDash(st.GetDomain()),
			fmt.Sprint(st.GetPorts()), fmt.Sprint(st.GetEndpoints()), orDash(strings.Join(st.GetServingHosts(), " "))}
	case *culvertv1.Resource_Domain:
		st := body.Domain.GetStatus()
		return []string{title(body.Domain.GetMetadata()), fmt.Sprint(len(st.GetNetworks())), fmt.Sprint(len(st.GetPolicies()))}
	case *culvertv1.Resource_Gateway:
		return gatewayRow(body.Gateway)
	case *culvertv1.Resource_Policy:
		return []string{title(body.Policy.GetMetadata()), body.Policy.GetSpec().GetDomain(), way(body.Policy)}
	case *culvertv1.Resource_Port:
		p, st := body.Port, body.Port.GetStatus()
		return []string{title(p.GetMetadata()), p.GetSpec().GetNetwork(), orDash(strings.Join(st.GetAddresses(), " ")), orDash(st.GetHost()),
			st.GetState(), since(st.GetSince(), now), traffic(st.GetTraffic())}
	case *culvertv1.Resource_Host:
		st := body.Host.GetStatus()
		return []string{title(body.Host.GetMetadata()), orDash(st.GetVtep()), st.GetState(), orDash(st.GetAppliedRevision()),
			checked(st), fmt.Sprint(st.GetEndpoints()), fmt.Sprint(len(st.GetProblems()) + len(st.GetUnclaimed()) + len(st.GetRefusals()))}
	case *culvertv1.Resource_Endpoint:
		e, st := body.Endpoint, body.Endpoint.GetStatus()
		return []string{title(e.GetMetadata()), st.GetNetwork(), st.GetMac(), orDash(strings.Join(st.GetAddresses(), " ")), orDash(st.GetHost()),
			orDash(st.GetState()), since(st.GetSince(), now), st.GetEvidence()}
	}
	return nil
}

// table aligns rows by columns, two spaces between them.
func table(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		if _, err := fmt.Fprintln(tw, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %s", n, plural(noun))
}

func plural(noun string) string {
	if stem, ok := strings.CutSuffix(noun, "y"); ok {
		return stem + "ies"
	}
	return noun + "s"
}

// since is how long ago an RFC 3339 time was.
func since(s string, now time.Time) string {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return "-"
	}
	return age(now.Sub(t).Seconds())
}

// age is a time span in its largest unit, for people.
func age(seconds float64) string {
	switch {
	case seconds < 0:
		return "0 s"
	case seconds < 120:
		return fmt.Sprintf("%.0f s", seconds)
	case seconds < 2*3600:
		return fmt.Sprintf("%.0f min", seconds/60)
	case seconds < 2*86400:
		return fmt.Sprintf("%.0f h", seconds/3600)
	}
	return fmt.Sprintf("%.0f d", seconds/86400)
}

// took is how long something took, for people.
func took(seconds float64) string {
	switch {
	case seconds < 0.01:
		return fmt.Sprintf("%.1f ms", seconds*1000)
	case seconds < 1:
		return fmt.Sprintf("%.0f ms", seconds*1000)
	}
	return fmt.Sprintf("%.1f s", seconds)
}

func checked(st *culvertv1.HostStatus) string {
	if st.GetAppliedRevision() == "" {
		return "never"
	}
	return age(st.GetEvidenceAgeSeconds()) + " ago"
}

func traffic(t *culvertv1.Traffic) string {
	if t == nil {
		return "-"
	}
	return size(t.GetReceivedBytes()) + " in, " + size(t.GetSentBytes()) + " out"
}

func size(b uint64) string {
	v, units := float64(b), []string{"B", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for v >= 999.95 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", b)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
