package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// callTimeout bounds a call that is not expected to wait for hosts.
const callTimeout = 15 * time.Second

// session is the flags that all verbs have.
type session struct {
	env    *Env
	tenant string
	output string
}

// check refuses bad values of the flags that all verbs have.
func (s *session) check() error {
	switch s.output {
	case "text", "json", "yaml":
	default:
		return &overlay.FieldError{Field: "--output", Value: s.output, Allowed: "text, json or yaml"}
	}
	if s.tenant != "" {
		return overlay.CheckName("--tenant", s.tenant)
	}
	return nil
}

// with connects to the cluster and runs f.
func (s *session) with(f func(*client.Client) error) error {
	if err := s.check(); err != nil {
		return err
	}
	cfg, _, err := client.Find(s.env.Getenv, s.env.labConfig())
	if err != nil {
		return err
	}
	cl, err := client.New(cfg)
	if err != nil {
		return err
	}
	defer cl.Close()
	return f(cl)
}

// name is what an argument says: TENANT/NAME or NAME.
type name struct{ tenant, name string }

func (s *session) name(field, arg string) (name, error) {
	n := name{s.tenant, arg}
	if tenant, rest, ok := strings.Cut(arg, "/"); ok {
		if err := overlay.CheckName("tenant of "+field, tenant); err != nil {
			return name{}, err
		}
		if s.tenant != "" && s.tenant != tenant {
			return name{}, api.Refuse(api.CodeUsage, "nothing was done",
				fmt.Sprintf("%s %s and --tenant %s name two tenants", field, arg, s.tenant), "name one of them")
		}
		n = name{tenant, rest}
	}
	return n, overlay.CheckName(field, n.name)
}

// owned reports whether things of the kind belong to a tenant.
func owned(kind overlay.Kind) bool {
	return kind != overlay.KindTenant && kind != overlay.KindHost
}

// find fetches the one resource that an argument names: of its tenant, else of
// tenant default, else the only match.
func (s *session) find(ctx context.Context, cl *client.Client, kind overlay.Kind, arg string) (*culvertv1.Resource, string, error) {
	return s.findAs(ctx, cl, "NAME", kind, arg)
}

// findAs is find for an argument or flag of that name.
func (s *session) findAs(ctx context.Context, cl *client.Client, field string, kind overlay.Kind, arg string) (*culvertv1.Resource, string, error) {
	n, err := s.name(field, arg)
	if err != nil {
		return nil, "", err
	}
	if !owned(kind) {
		if strings.Contains(arg, "/") {
			return nil, "", &overlay.FieldError{Field: field, Value: arg, Allowed: "a name without tenant"}
		}
		n.tenant = ""
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := cl.List(ctx, &culvertv1.ListRequest{Kind: kind.String(), Tenant: n.tenant, Name: n.name})
	if err != nil {
		return nil, "", err
	}
	var owners []string
	for _, r := range list.GetItems() {
		t := api.MetadataOf(r).GetTenant()
		if n.tenant == "" && t == api.DefaultTenant {
			return r, list.GetRevision(), nil
		}
		owners = append(owners, t+"/"+n.name)
	}
	switch len(owners) {
	case 0:
		return nil, "", api.Refuse(api.CodeNotFound, fmt.Sprintf("%s %s was not found", kind, arg), where(n.tenant, kind),
			fmt.Sprintf("see what there is: culvert %s list", kind))
	case 1:
		return list.GetItems()[0], list.GetRevision(), nil
	}
	return nil, "", api.Refuse(api.CodeAmbiguous, fmt.Sprintf("%s %s was not chosen", kind, arg),
		fmt.Sprintf("%d tenants have one", len(owners)), "", owners...)
}

func where(tenant string, kind overlay.Kind) string {
	switch {
	case !owned(kind):
		return "there is none of that name"
	case tenant != "":
		return "tenant " + tenant + " has none of that name"
	}
	return "no tenant has one of that name"
}

// title names a resource as people write it: without the tenant if that is
// the default one.
func title(m *culvertv1.Metadata) string {
	if m.GetTenant() == "" || m.GetTenant() == api.DefaultTenant {
		return m.GetName()
	}
	return m.GetTenant() + "/" + m.GetName()
}

// verb fills in what all commands have.
func verb(use, short, example string, args cobra.PositionalArgs, run func(*cobra.Command, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Example: example, Args: args, RunE: run}
}
