package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// createCommand is create of a kind.
func (s *session) createCommand(kind overlay.Kind, example string) *cobra.Command {
	var w waiting
	f := specFlags(kind)
	c := verb("create NAME", fmt.Sprintf("Create one %s", kind), example, exactly("NAME"), func(c *cobra.Command, args []string) error {
		if err := w.check(c); err != nil {
			return err
		}
		return s.with(func(cl *client.Client) error {
			r, err := s.fresh(c, cl, kind, args[0], f)
			if err != nil {
				return err
			}
			if err := f.apply(c.Flags(), r); err != nil {
				return err
			}
			return s.put(c.Context(), cl, &w, culvertv1.PutMode_PUT_MODE_CREATE, r)
		})
	})
	f.define(c.Flags(), false)
	w.flags(c)
	return c
}

// setCommand is set of a kind.
func (s *session) setCommand(kind overlay.Kind, example string) *cobra.Command {
	var w waiting
	f := specFlags(kind)
	c := verb("set NAME", fmt.Sprintf("Change fields of one %s", kind), example, exactly("NAME"), func(c *cobra.Command, args []string) error {
		if err := w.check(c); err != nil {
			return err
		}
		if !f.any(c.Flags()) {
			return usage(c, "no flag says what to change")
		}
		return s.with(func(cl *client.Client) error {
			return s.change(c.Context(), cl, &w, kind, args[0], func(r *culvertv1.Resource) error { return f.apply(c.Flags(), r) })
		})
	})
	c.Long = c.Short + ".\n\n" + othersStay
	f.define(c.Flags(), true)
	w.flags(c)
	return c
}

// othersStay is what verbs that change fields promise, for their help.
const othersStay = "Fields that no flag names stay as they are, also if somebody else changes them\nat the same time."

// maxReads bounds how often a change is made anew because others came first.
// Each refusal means that one of them is done, so 20 operators at once come to
// an end.
const maxReads = 20

// change reads the one resource that an argument names, changes it by edit and
// writes it back at the revision that it was read at. If it was changed
// meanwhile it is read again and edit, which says which fields become what, is
// done on what it is now.
func (s *session) change(ctx context.Context, cl *client.Client, w *waiting, kind overlay.Kind, arg string, edit func(*culvertv1.Resource) error) error {
	for n := 1; ; n++ {
		r, _, err := s.find(ctx, cl, kind, arg)
		if err != nil {
			return err
		}
		if err := edit(r); err != nil {
			return err
		}
		err = s.put(ctx, cl, w, culvertv1.PutMode_PUT_MODE_SET, r)
		var ref *api.Refusal
		if !errors.As(err, &ref) || ref.Code() != api.CodeStale {
			return err
		}
		if n == maxReads {
			return api.Refuse(api.CodeStale, fmt.Sprintf("%s %s was not changed", kind, arg),
				fmt.Sprintf("it was read %d times, and each time somebody else changed it before this change came; the last time %s", n, ref.PB().GetWhy()),
				"type the same command again when the others are done")
		}
	}
}

// fresh is the resource that create begins with. The tenant is that of the
// name, or of --tenant; without either a port goes where its network is, a
// policy and a gateway where their domain is.
func (s *session) fresh(c *cobra.Command, cl *client.Client, kind overlay.Kind, arg string, f flagSet) (*culvertv1.Resource, error) {
	n, err := s.name("NAME", arg)
	if err != nil {
		return nil, err
	}
	m := &culvertv1.Metadata{Name: n.name, Tenant: n.tenant}
	if kind == overlay.KindTenant {
		if n.name != arg {
			return nil, &overlay.FieldError{Field: "NAME", Value: arg, Allowed: "a name without tenant"}
		}
		m.Tenant = ""
		return api.Wrap(&culvertv1.Tenant{ApiVersion: api.Version, Kind: "Tenant", Metadata: m, Spec: &culvertv1.TenantSpec{}}), nil
	}
	at, flag, home := f.home()
	switch {
	case at == 0:
		m.Tenant = cmp.Or(m.Tenant, api.DefaultTenant)
	case home == "":
		return nil, usage(c, fmt.Sprintf("%s is missing: a %s is in one", flag, kind))
	default:
		in := *s // it is looked for in the new thing's tenant if that is known
		in.tenant = n.tenant
		found, _, err := in.findAs(c.Context(), cl, flag, at, home)
		if err != nil {
			return nil, err
		}
		m.Tenant, home = api.MetadataOf(found).GetTenant(), api.MetadataOf(found).GetName()
	}
	return blank(kind, m, home), nil
}

// blank is a resource of a kind that a tenant owns, which says nothing but what
// it is in.
func blank(kind overlay.Kind, m *culvertv1.Metadata, home string) *culvertv1.Resource {
	v, k := api.Version, api.KindName(kind)
	switch kind {
	case overlay.KindDomain:
		return api.Wrap(&culvertv1.Domain{ApiVersion: v, Kind: k, Metadata: m})
	case overlay.KindNetwork:
		return api.Wrap(&culvertv1.Network{ApiVersion: v, Kind: k, Metadata: m, Spec: &culvertv1.NetworkSpec{}})
	case overlay.KindGateway:
		return api.Wrap(&culvertv1.Gateway{ApiVersion: v, Kind: k, Metadata: m, Spec: &culvertv1.GatewaySpec{Domain: home}})
	case overlay.KindPolicy:
		return api.Wrap(&culvertv1.NetworkPolicy{ApiVersion: v, Kind: k, Metadata: m, Spec: &culvertv1.NetworkPolicySpec{Domain: home}})
	}
	return api.Wrap(&culvertv1.Port{ApiVersion: v, Kind: k, Metadata: m, Spec: &culvertv1.PortSpec{Network: home}})
}

func (s *session) bindCommand() *cobra.Command {
	var w waiting
	var host string
	c := verb("bind PORT --host HOST", "Say on which host a port may appear", "  culvert port bind vm1 --host h2", exactly("PORT"),
		func(c *cobra.Command, args []string) error {
			if err := w.check(c); err != nil {
				return err
			}
			if host == "" {
				return usage(c, "--host is missing")
			}
			if err := overlay.CheckName("--host", host); err != nil {
				return err
			}
			return s.with(func(cl *client.Client) error {
				return s.change(c.Context(), cl, &w, overlay.KindPort, args[0], func(r *culvertv1.Resource) error {
					spec := r.GetPort().GetSpec()
					if spec == nil {
						spec = &culvertv1.PortSpec{}
						r.GetPort().Spec = spec
					}
					spec.Hosts = []string{host}
					return nil
				})
			})
		})
	c.Long = c.Short + ".\n\n" + othersStay
	c.Flags().StringVar(&host, "host", "", "name of the host")
	w.flags(c)
	return c
}

func (s *session) applyCommand() *cobra.Command {
	var w waiting
	var file string
	c := verb("apply -f FILE", "Create or change what a file describes, all of it or nothing",
		"  culvert apply -f networks.yaml\n  culvert network show blue -o json | culvert apply -f -", exactly(),
		func(c *cobra.Command, _ []string) error {
			if err := errors.Join(w.check(c), s.check()); err != nil {
				return err
			}
			if file == "" {
				return usage(c, "-f FILE is missing")
			}
			list, err := s.readFile(file)
			if err != nil {
				return err
			}
			return s.with(func(cl *client.Client) error {
				return s.put(c.Context(), cl, &w, culvertv1.PutMode_PUT_MODE_APPLY, list...)
			})
		})
	c.Long = c.Short + `.

A document that carries metadata.revision, as the verb show prints it, is
refused (CV0114) if somebody has changed the thing since and the document says
something else. Without it what is there is overwritten.`
	c.Flags().StringVarP(&file, "filename", "f", "", "file with YAML or JSON documents, - for standard input")
	w.flags(c)
	return c
}

// readFile reads and checks the documents of a file before anything is sent.
func (s *session) readFile(file string) ([]*culvertv1.Resource, error) {
	what := file + " was not applied"
	if file == "-" {
		what = "standard input was not applied"
	}
	data, err := s.load(file)
	if err != nil {
		return nil, api.Refuse(api.CodeFile, what, err.Error(), "")
	}
	docs, err := api.DecodeDocuments(file, data)
	if err != nil {
		ref, _ := api.RefuseValue(what, err)
		return nil, ref
	}
	var list []*culvertv1.Resource
	for _, d := range docs {
		if m := api.MetadataOf(d.Resource); m != nil && m.Tenant == "" && owned(api.KindOf(d.Resource)) {
			m.Tenant = s.tenant
		}
		if _, err := api.ParseResource(d.Resource); err != nil {
			ref, ok := api.RefuseValue(what, d.Locate(err))
			if !ok {
				return nil, err
			}
			return nil, ref
		}
		list = append(list, d.Resource)
	}
	return list, nil
}

func (s *session) load(file string) ([]byte, error) {
	in := s.env.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("it was not opened: %w", errors.Unwrap(err))
		}
		defer f.Close()
		in = f
	}
	if in == nil {
		return nil, errors.New("there is no standard input")
	}
	data, err := io.ReadAll(io.LimitReader(in, api.MaxDocumentBytes+1))
	if err != nil {
		return nil, fmt.Errorf("it was not read: %w", err)
	}
	return data, nil
}

// put sends resources, waits, and prints what became of each.
func (s *session) put(ctx context.Context, cl *client.Client, w *waiting, mode culvertv1.PutMode, list ...*culvertv1.Resource) error {
	for _, r := range list {
		if _, err := api.ParseResource(r); err != nil {
			what := fmt.Sprintf("%s %s was not written", api.KindOf(r), title(api.MetadataOf(r)))
			if ref, ok := api.RefuseValue(what, err); ok {
				return ref
			}
			return err
		}
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply, err := cl.Put(call, &culvertv1.PutRequest{Mode: mode, Resources: list})
	if err != nil {
		return err
	}
	wait, err := w.wait(ctx, cl, reply.GetRevision())
	return errors.Join(s.printChanges(reply, wait), err, w.verdict(wait, reply.GetRevision()))
}
