package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

func (s *session) tenantCommand() *cobra.Command {
	c := &cobra.Command{Use: "tenant", Short: "Tenants own networks and ports", RunE: group,
		Example: "  culvert tenant create acme\n  culvert tenant list"}
	c.AddCommand(
		s.createCommand(overlay.KindTenant, "  culvert tenant create acme --max-networks 10"),
		s.setCommand(overlay.KindTenant, "  culvert tenant set acme --max-ports 500"),
		s.listCommand(overlay.KindTenant), s.showCommand(overlay.KindTenant, "acme"),
		s.deleteCommand(overlay.KindTenant, "acme"), s.watchCommand(overlay.KindTenant),
	)
	return c
}

func (s *session) networkCommand() *cobra.Command {
	c := &cobra.Command{Use: "network", Short: "Networks: one VXLAN segment each", RunE: group,
		Example: "  culvert network create blue --subnet 10.20.0.0/24\n  culvert network list"}
	c.AddCommand(
		s.createCommand(overlay.KindNetwork, "  culvert network create blue --subnet 10.20.0.0/24\n  culvert network create red --subnet fd00:20::/64 --vni 20001 --host h1 --host h2"),
		s.setCommand(overlay.KindNetwork, "  culvert network set blue --mtu 1400\n  culvert network set blue --label tier=web\n  culvert network set blue --domain shop\n  culvert network set big --distribution on-demand"),
		s.listCommand(overlay.KindNetwork), s.showCommand(overlay.KindNetwork, "blue"),
		s.deleteCommand(overlay.KindNetwork, "blue"), s.watchCommand(overlay.KindNetwork),
	)
	return c
}

func (s *session) portCommand() *cobra.Command {
	c := &cobra.Command{Use: "port", Short: "Ports: a VM's card in a network", RunE: group,
		Example: "  culvert port create vm1 --network blue --vm web1\n  culvert port list"}
	c.AddCommand(
		s.createCommand(overlay.KindPort, "  culvert port create vm1 --network blue --vm web1\n  culvert port create db --network blue --mac 52:54:00:12:34:56 --ip 10.20.0.9"),
		s.setCommand(overlay.KindPort, "  culvert port set vm1 --ip 10.20.0.7"),
		s.bindCommand(),
		s.listCommand(overlay.KindPort), s.showCommand(overlay.KindPort, "vm1"),
		s.deleteCommand(overlay.KindPort, "vm1"), s.watchCommand(overlay.KindPort),
	)
	return c
}

func (s *session) domainCommand() *cobra.Command {
	c := &cobra.Command{Use: "domain", Short: "Domains: networks that may be routed to each other", RunE: group,
		Example: "  culvert domain create shop\n  culvert network create web --subnet 10.30.1.0/24 --domain shop\n  culvert domain show shop"}
	c.Long = c.Short + ".\n\n" + `Each network of a domain has a gateway that answers on every host. What it
routes is what policies open: culvert policy create --help

Its own routes lead to what is in none of its networks, by way of a declared port
in one of them; they open nothing. A network of another tenant is in it when both
say so: the domain by --admit-tenant, the network by --domain TENANT/DOMAIN.`
	c.AddCommand(
		s.createCommand(overlay.KindDomain, "  culvert domain create shop"),
		s.setCommand(overlay.KindDomain, "  culvert domain set shop --label stage=live\n  culvert domain set shop --admit-tenant acme\n  culvert domain set shop --route 0.0.0.0/0=10.30.1.9"),
		s.listCommand(overlay.KindDomain), s.showCommand(overlay.KindDomain, "shop"),
		s.deleteCommand(overlay.KindDomain, "shop"), s.watchCommand(overlay.KindDomain),
	)
	return c
}

func (s *session) policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Policies: the ways between networks of a domain", RunE: group,
		Example: "  culvert policy create web-db --domain shop --from web --to db\n  culvert policy list"}
	c.Long = c.Short + ".\n\n" + `A routed policy lets guests of one network send to the other by way of the
gateway. A bridged one makes one segment of the two, both ways: they have one MTU,
declared ports, and no MAC and no address in common; their subnets may be equal.`
	c.AddCommand(
		s.createCommand(overlay.KindPolicy, "  culvert policy create web-db --domain shop --from web --to db\n  culvert policy create logs --domain shop --from web --to log --direction forward\n  culvert policy create move --domain shop --from old --to new --mode bridged"),
		s.setCommand(overlay.KindPolicy, "  culvert policy set web-db --direction forward"),
		s.listCommand(overlay.KindPolicy), s.showCommand(overlay.KindPolicy, "web-db"),
		s.deleteCommand(overlay.KindPolicy, "web-db"), s.watchCommand(overlay.KindPolicy),
	)
	return c
}

func (s *session) gatewayCommand() *cobra.Command {
	c := &cobra.Command{Use: "gateway", Short: "Gateways: ways out of a domain, by hosts with an uplink", RunE: group,
		Example: "  culvert gateway create out --domain shop --host h1 --host h2 --uplink eth1 --address 203.0.113.10/24 --next-hop 203.0.113.1\n  culvert gateway list"}
	c.Long = c.Short + ".\n\n" + `One of its hosts has it, the first in their order that is ready; another
takes over when that dies or its uplink does. Which step failed on which host
is in: culvert gateway show`
	c.AddCommand(
		s.createCommand(overlay.KindGateway, "  culvert gateway create out --domain shop --host h1 --host h2 --uplink eth1 --address 203.0.113.10/24 --next-hop 203.0.113.1\n  culvert gateway create six --domain lab --host h1 --uplink eth1 --address 2001:db8::10/64 --next-hop 2001:db8::1 --network web"),
		s.setCommand(overlay.KindGateway, "  culvert gateway set out --floating 203.0.113.20=10.20.0.5\n  culvert gateway set out --forward tcp/8080=10.20.0.7:80 --forward udp/203.0.113.21:53=10.20.0.8:53\n  culvert gateway set out --host h2 --host h1"),
		s.listCommand(overlay.KindGateway), s.showCommand(overlay.KindGateway, "out"),
		s.deleteCommand(overlay.KindGateway, "out"), s.watchCommand(overlay.KindGateway),
	)
	return c
}

func (s *session) hostCommand() *cobra.Command {
	c := &cobra.Command{Use: "host", Short: "Hosts: machines with an agent", RunE: group,
		Example: "  culvert host list"}
	c.AddCommand(s.listCommand(overlay.KindHost), s.showCommand(overlay.KindHost, "h1"), s.watchCommand(overlay.KindHost))
	return c
}

func (s *session) endpointCommand() *cobra.Command {
	c := &cobra.Command{Use: "endpoint", Short: "Endpoints: where each port is now", RunE: group,
		Example: "  culvert endpoint list --network blue"}
	c.AddCommand(s.listCommand(overlay.KindEndpoint), s.showCommand(overlay.KindEndpoint, "vm1"), s.watchCommand(overlay.KindEndpoint))
	return c
}

// networkFlag adds --network to verbs that look at what networks hold.
func networkFlag(c *cobra.Command, kind overlay.Kind, into *string) {
	if kind == overlay.KindPort || kind == overlay.KindEndpoint {
		c.Flags().StringVar(into, "network", "", "only those of this network")
	}
}

// only reads --network: a name, or TENANT/NAME.
func (s *session) only(network string) (name, error) {
	if network == "" {
		return name{tenant: s.tenant}, nil
	}
	return s.name("--network", network)
}

func (s *session) listCommand(kind overlay.Kind) *cobra.Command {
	var network string
	c := verb("list", "List "+plural(kind.String()), fmt.Sprintf("  culvert %s list\n  culvert %s list -o json", kind, kind), exactly(),
		func(c *cobra.Command, _ []string) error {
			return s.with(func(cl *client.Client) error {
				n, err := s.only(network)
				if err != nil {
					return err
				}
				ctx, cancel := context.WithTimeout(c.Context(), callTimeout)
				defer cancel()
				list, err := cl.List(ctx, &culvertv1.ListRequest{Kind: kind.String(), Tenant: ofOwned(kind, n.tenant), Network: n.name})
				if err != nil {
					return err
				}
				return s.printList(kind, list)
			})
		})
	networkFlag(c, kind, &network)
	return c
}

// ofOwned is the tenant for kinds that have one: --tenant is the default of
// names and says nothing about hosts.
func ofOwned(kind overlay.Kind, tenant string) string {
	if !owned(kind) {
		return ""
	}
	return tenant
}

func (s *session) showCommand(kind overlay.Kind, sample string) *cobra.Command {
	return verb("show NAME", fmt.Sprintf("Show one %s in full", kind),
		fmt.Sprintf("  culvert %s show %s\n  culvert %s show %s -o json", kind, sample, kind, sample), exactly("NAME"),
		func(c *cobra.Command, args []string) error {
			return s.with(func(cl *client.Client) error {
				r, _, err := s.find(c.Context(), cl, kind, args[0])
				if err != nil {
					return err
				}
				return s.printOne(r)
			})
		})
}

func (s *session) watchCommand(kind overlay.Kind) *cobra.Command {
	var network string
	c := verb("watch", "Print "+plural(kind.String())+", then every change, until interrupted",
		fmt.Sprintf("  culvert %s watch\n  culvert %s watch -o json", kind, kind), exactly(),
		func(c *cobra.Command, _ []string) error {
			return s.with(func(cl *client.Client) error {
				n, err := s.only(network)
				if err != nil {
					return err
				}
				stream, err := cl.Watch(c.Context(), &culvertv1.WatchRequest{Kind: kind.String(), Tenant: ofOwned(kind, n.tenant), Network: n.name})
				if err != nil {
					return err
				}
				defer stream.Close()
				for {
					e, err := stream.Receive()
					if errors.Is(err, io.EOF) {
						return api.Refuse(api.CodeUnanswered, "the watch ended", "the manager closed it", "type the same command again")
					}
					if err != nil {
						return err
					}
					if err := s.printEvent(kind, e); err != nil {
						return err
					}
				}
			})
		})
	networkFlag(c, kind, &network)
	return c
}

func (s *session) deleteCommand(kind overlay.Kind, sample string) *cobra.Command {
	var withPorts bool
	var w waiting
	c := verb("delete NAME", fmt.Sprintf("Delete one %s", kind), fmt.Sprintf("  culvert %s delete %s", kind, sample), exactly("NAME"),
		func(c *cobra.Command, args []string) error {
			if err := w.check(c); err != nil {
				return err
			}
			return s.with(func(cl *client.Client) error {
				r, _, err := s.find(c.Context(), cl, kind, args[0])
				if err != nil {
					return err
				}
				m := api.MetadataOf(r)
				ctx, cancel := context.WithTimeout(c.Context(), callTimeout)
				defer cancel()
				reply, err := cl.Delete(ctx, &culvertv1.DeleteRequest{Kind: kind.String(), Tenant: m.GetTenant(), Name: m.GetName(), WithPorts: withPorts})
				if err != nil {
					return err
				}
				wait, err := w.wait(c.Context(), cl, reply.GetRevision())
				return errors.Join(s.printDeleted(kind, m, reply, wait), err, w.verdict(wait, reply.GetRevision()))
			})
		})
	if kind == overlay.KindNetwork {
		c.Example += " --with-ports"
		c.Flags().BoolVar(&withPorts, "with-ports", false, "delete its ports too")
	}
	w.flags(c)
	return c
}
