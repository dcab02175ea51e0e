package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// jsonPath is the document of `explain path -o json`.
type jsonPath struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Reachable  bool       `json:"reachable"`
	Verdict    string     `json:"verdict"`
	Cure       string     `json:"cure,omitempty"`
	Steps      []jsonStep `json:"steps"`
}

type jsonStep struct {
	Host  string `json:"host,omitempty"`
	About string `json:"about"` // place, policy, port, table
	State string `json:"state"` // ok, note, fails
	Text  string `json:"text"`
}

func (s *session) explainCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "explain", Short: "Say why something is as it is",
		Example: "  culvert explain path vm1 vm2", RunE: group, Args: cobra.ArbitraryArgs,
	}
	c.AddCommand(s.explainPathCommand())
	return c
}

func (s *session) explainPathCommand() *cobra.Command {
	c := verb("path VM1 VM2|ADDRESS [SERVICE]", "Say hop by hop whether one VM reaches another, or an address",
		"  culvert explain path vm1 vm2\n  culvert explain path vm1 203.0.113.7 tcp/443\n  culvert explain path red/web blue/db -o json",
		pathArgs,
		func(c *cobra.Command, args []string) error {
			return s.with(func(cl *client.Client) error {
				ctx, cancel := context.WithTimeout(c.Context(), callTimeout)
				defer cancel()
				req := &culvertv1.ExplainPathRequest{Tenant: s.tenant, From: args[0], To: args[1]}
				if len(args) == 3 {
					req.Service = args[2]
				}
				r, err := cl.ExplainPath(ctx, req)
				if err != nil {
					return err
				}
				if err := s.writePath(r); err != nil {
					return err
				}
				if !r.GetReachable() {
					return exitError(api.ExitDiffers)
				}
				return nil
			})
		})
	c.Long = "Follows a packet from VM1: where both ends are, what policy says, and what the\nkernels of both hosts hold beside what they should hold. Ends with a verdict in\none line and, where traffic would fail, with what is missing and what to type.\n" +
		"VM1 and VM2 are ports, or VMs with one port.\nExit code 0: it gets there; 1: it does not."
	return c
}

func pathArgs(c *cobra.Command, args []string) error {
	if len(args) == 3 {
		return nil
	}
	return exactly("VM1", "VM2|ADDRESS")(c, args)
}

func (s *session) writePath(r *culvertv1.ExplainPathResponse) error {
	switch s.output {
	case "json":
		doc := jsonPath{APIVersion: api.Version, Kind: "Path", Reachable: r.GetReachable(), Verdict: r.GetVerdict(), Cure: r.GetCure(), Steps: []jsonStep{}}
		for _, st := range r.GetSteps() {
			doc.Steps = append(doc.Steps, jsonStep{st.GetHost(), st.GetAbout(), st.GetState(), st.GetText()})
		}
		return writeJSON(s.env.Stdout, doc)
	case "yaml":
		return &overlay.FieldError{Field: "--output", Value: "yaml", Allowed: "text or json for a path"}
	}
	var b strings.Builder
	host := 0
	for _, st := range r.GetSteps() {
		host = max(host, len(st.GetHost()))
	}
	for _, st := range r.GetSteps() {
		state := st.GetState()
		if state == "fails" {
			state = "FAILS"
		}
		fmt.Fprintf(&b, "%-5s  %-*s  %-6s  %s\n", state, host, st.GetHost(), st.GetAbout(), st.GetText())
	}
	fmt.Fprintf(&b, "%s.\n", r.GetVerdict())
	if r.GetCure() != "" {
		fmt.Fprintf(&b, "Cure: %s\n", r.GetCure())
	}
	_, err := s.env.Stdout.Write([]byte(b.String()))
	return err
}
