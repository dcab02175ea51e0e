package cli

import (
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

// writeCommand is create or set of a kind.
func (s *session) writeCommand(kind overlay.Kind, what, example string) *cobra.Command {
	var w waiting
	f := specFlags(kind)
	short := map[string]string{"create": "Create one %s", "set": "Change fields of one %s"}[what]
	c := verb(what+" NAME", fmt.Sprintf(short, kind), example, exactly("NAME"), func(c *cobra.Command, args []string) error {
		if err := w.check(c); err != nil {
			return err
		}
		return s.with(func(cl *client.Client) error {
			var r *culvertv1.Resource
			var err error
			mode := culvertv1.PutMode_PUT_MODE_CREATE
			if what == "set" {
				mode = culvertv1.PutMode_PUT_MODE_SET
				r, _, err = s.find(c.Context(), cl, kind, args[0])
			} else {
				r, err = s.fresh(c, cl, kind, args[0], f)
			}
			if err != nil {
				return err
			}
			before := string(api.EncodeJSON(r))
			if err := f.apply(c.Flags(), r); err != nil {
				return err
			}
			if what == "set" && string(api.EncodeJSON(r)) == before && !f.any(c.Flags()) {
				return usage(c, "no flag says what to change")
			}
			return s.put(c.Context(), cl, &w, mode, r)
		})
	})
	f.define(c.Flags(), what == "set")
	w.flags(c)
	return c
}

// fresh is the resource that create begins with. The tenant is that of the
// name, or of --tenant; a port without either goes where its network is.
func (s *session) fresh(c *cobra.Command, cl *client.Client, kind overlay.Kind, arg string, f flagSet) (*culvertv1.Resource, error) {
	n, err := s.name("NAME", arg)
	if err != nil {
		return nil, err
	}
	m := &culvertv1.Metadata{Name: n.name, Tenant: n.tenant}
	switch kind {
	case overlay.KindTenant:
		if n.name != arg {
			return nil, &overlay.FieldError{Field: "NAME", Value: arg, Allowed: "a name without tenant"}
		}
		m.Tenant = ""
		return api.Wrap(&culvertv1.Tenant{ApiVersion: api.Version, Kind: "Tenant", Metadata: m, Spec: &culvertv1.TenantSpec{}}), nil
	case overlay.KindNetwork:
		if m.Tenant == "" {
			m.Tenant = api.DefaultTenant
		}
		return api.Wrap(&culvertv1.Network{ApiVersion: api.Version, Kind: "Network", Metadata: m, Spec: &culvertv1.NetworkSpec{}}), nil
	}
	network := f.network()
	if network == "" {
		return nil, usage(c, "--network is missing: a port is in one")
	}
	in := *s // the network is looked for in the port's tenant if that is known
	in.tenant = n.tenant
	found, _, err := in.findAs(c.Context(), cl, "--network", overlay.KindNetwork, network)
	if err != nil {
		return nil, err
	}
	m.Tenant = api.MetadataOf(found).GetTenant()
	return api.Wrap(&culvertv1.Port{ApiVersion: api.Version, Kind: "Port", Metadata: m,
		Spec: &culvertv1.PortSpec{Network: api.MetadataOf(found).GetName()}}), nil
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
				r, _, err := s.find(c.Context(), cl, overlay.KindPort, args[0])
				if err != nil {
					return err
				}
				spec := r.GetPort().GetSpec()
				if spec == nil {
					spec = &culvertv1.PortSpec{}
					r.GetPort().Spec = spec
				}
				spec.Hosts = []string{host}
				return s.put(c.Context(), cl, &w, culvertv1.PutMode_PUT_MODE_SET, r)
			})
		})
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
