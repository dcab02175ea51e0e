package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// jsonStatus is the document of `status -o json`.
type jsonStatus struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Cluster    string            `json:"cluster"`
	Revision   string            `json:"revision"`
	Degraded   bool              `json:"degraded"`
	Managers   uint32            `json:"managers"`
	ManagersUp uint32            `json:"managersUp"`
	Hosts      []json.RawMessage `json:"hosts"`
	Counters   map[string]uint64 `json:"counters"`
}

func (s *session) statusCommand() *cobra.Command {
	c := verb("status [NOUN NAME]", "Say how the cluster is, or one thing in it",
		"  culvert status\n  culvert status port vm1\n  culvert status -o json", statusArgs,
		func(c *cobra.Command, args []string) error {
			return s.with(func(cl *client.Client) error {
				if len(args) == 2 {
					return s.statusOf(c.Context(), cl, args[0], args[1])
				}
				ctx, cancel := context.WithTimeout(c.Context(), callTimeout)
				defer cancel()
				st, err := cl.Status(ctx, &culvertv1.StatusRequest{})
				if err != nil {
					return err
				}
				return s.printStatus(st)
			})
		})
	c.Long = "Says in one sentence how the cluster is, then what is not well, worst first, each with the age of its evidence.\nExit code 0: all well; 1: degraded; 3: no manager reached."
	return c
}

func statusArgs(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return exactly("NOUN", "NAME")(c, args)
}

func (s *session) statusOf(ctx context.Context, cl *client.Client, noun, arg string) error {
	kind, err := api.ParseKind("NOUN", noun)
	if err != nil {
		return err
	}
	r, revision, err := s.find(ctx, cl, kind, arg)
	if err != nil {
		return err
	}
	if err := s.printList(kind, &culvertv1.ListResponse{Items: []*culvertv1.Resource{r}, Revision: revision}); err != nil {
		return err
	}
	if h := r.GetHost(); h != nil {
		if lines := concerns(h, revision); s.output == "text" && len(lines) > 0 {
			if err := printLines(s.env.Stdout, lines); err != nil {
				return err
			}
		}
		if !exact(h, revision) {
			return exitError(api.ExitDiffers)
		}
	}
	return nil
}

// exact reports whether a host is known to hold everything up to revision.
func exact(h *culvertv1.Host, revision string) bool {
	return h.GetStatus().GetState() == "connected" && h.GetStatus().GetAppliedRevision() == revision
}

// concerns are the lines on one host that is not well, or has something that
// one should know.
func concerns(h *culvertv1.Host, revision string) []string {
	st, host := h.GetStatus(), h.GetMetadata().GetName()
	var lines []string
	switch {
	case st.GetState() == "dead":
		lines = append(lines, fmt.Sprintf("%s is dead: last checked %s; no host has entries that point to it", host, checked(st)))
	case st.GetState() != "connected":
		lines = append(lines, fmt.Sprintf("%s is away: last checked %s, at revision %s; its VMs keep the tables they have", host, checked(st), orDash(st.GetAppliedRevision())))
	case st.GetAppliedRevision() != revision:
		lines = append(lines, fmt.Sprintf("%s is behind: at revision %s (checked %s)", host, orDash(st.GetAppliedRevision()), checked(st)))
	}
	for _, p := range st.GetProblems() {
		code, text, ok := strings.Cut(p, " ")
		if _, known := api.Lookup(api.Code(code)); ok && (known || strings.HasPrefix(code, "CV")) {
			lines = append(lines, fmt.Sprintf("%s  %s: %s", code, host, strings.TrimSpace(text)))
			continue
		}
		lines = append(lines, host+": "+p)
	}
	for _, d := range st.GetUnclaimed() {
		lines = append(lines, fmt.Sprintf("%s: device %s is in a bridge of ours and no port claims it: culvert attach PORT --dev %s", host, d, d))
	}
	for _, r := range st.GetRefusals() {
		lines = append(lines, fmt.Sprintf("%s: refused: %s", host, r))
	}
	return lines
}

func printLines(w io.Writer, lines []string) error {
	word := "things"
	if len(lines) == 1 {
		word = "thing"
	}
	_, err := fmt.Fprintf(w, "%d %s to know:\n  %s\n", len(lines), word, strings.Join(lines, "\n  "))
	return err
}

func (s *session) printStatus(st *culvertv1.StatusResponse) error {
	hosts := slices.Clone(st.GetHosts())
	slices.SortStableFunc(hosts, func(a, b *culvertv1.Host) int { // worst first, then by name
		return boolCompare(exact(a, st.GetRevision()), exact(b, st.GetRevision()))
	})
	good, oldest := 0, 0.0
	var lines []string
	for _, h := range hosts {
		if exact(h, st.GetRevision()) {
			good++
			oldest = max(oldest, h.GetStatus().GetEvidenceAgeSeconds())
		}
		lines = append(lines, concerns(h, st.GetRevision())...)
	}
	degraded := good < len(hosts) || st.GetManagersUp() < st.GetManagers()
	if err := s.writeStatus(st, hosts, good, oldest, lines, degraded); err != nil {
		return err
	}
	if degraded {
		return exitError(api.ExitDiffers)
	}
	return nil
}

func (s *session) writeStatus(st *culvertv1.StatusResponse, hosts []*culvertv1.Host, good int, oldest float64, lines []string, degraded bool) error {
	if s.output == "json" {
		doc := jsonStatus{APIVersion: api.Version, Kind: "Status", Cluster: st.GetCluster(), Revision: st.GetRevision(), Degraded: degraded,
			Managers: st.GetManagers(), ManagersUp: st.GetManagersUp(), Hosts: []json.RawMessage{}, Counters: st.GetCounters()}
		if doc.Counters == nil {
			doc.Counters = map[string]uint64{}
		}
		for _, h := range st.GetHosts() {
			doc.Hosts = append(doc.Hosts, api.EncodeJSON(api.Wrap(h)))
		}
		return writeJSON(s.env.Stdout, doc)
	}
	if s.output == "yaml" {
		return &overlay.FieldError{Field: "--output", Value: "yaml", Allowed: "text or json for a status"}
	}
	var first string
	switch {
	case len(hosts) == 0:
		first = fmt.Sprintf("No host yet; revision %s.", st.GetRevision())
	case good == len(hosts) && good == 1:
		first = fmt.Sprintf("The one host is exact at revision %s (checked %s ago).", st.GetRevision(), age(oldest))
	case good == len(hosts):
		first = fmt.Sprintf("All %d hosts exact at revision %s (checked %s ago).", good, st.GetRevision(), age(oldest))
	default:
		first = fmt.Sprintf("%d of %d hosts exact at revision %s (checked %s ago).", good, len(hosts), st.GetRevision(), age(oldest))
		if good == 0 {
			first = fmt.Sprintf("None of %s is exact at revision %s.", count(len(hosts), "host"), st.GetRevision())
		}
	}
	if _, err := fmt.Fprintf(s.env.Stdout, "%s %d of %d managers.\n", first, st.GetManagersUp(), st.GetManagers()); err != nil {
		return err
	}
	if len(lines) == 0 {
		return nil
	}
	return printLines(s.env.Stdout, lines)
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
