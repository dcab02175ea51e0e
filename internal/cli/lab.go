//go:build linux

package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/lab"
	"culvert/internal/overlay"
)

// labSession is the flags that all verbs of `lab` have.
type labSession struct {
	env  *Env
	name string
}

func labCommand(env *Env) *cobra.Command {
	s := &labSession{env: env}
	c := &cobra.Command{
		Use: "lab", Short: "A data centre on this machine, to try things in", RunE: group,
		Long:    "Builds hosts, a manager and VMs as network namespaces of this machine, with the real daemons in them.\nVMs are namespaces too, or real guests under QEMU (--vms qemu, vm create --qemu), which CULVERT_GUESTS may name a\nfolder of unpacked packages for (kernel, busybox-static, dhcpcd-base); else they come from /var/cache/culvert/guest or this machine.\nTwo labs do not know of each other; down leaves nothing behind.",
		Example: "  sudo culvert lab up\n  sudo culvert lab ping vm1 vm6\n  sudo culvert lab vm migrate vm1 h3 --while-pinging\n  sudo culvert lab down",
	}
	c.PersistentFlags().StringVar(&s.name, "lab", lab.DefaultName, "name of the lab")
	c.AddCommand(s.upCommand(), s.downCommand(), s.listCommand(), s.labStatusCommand(), s.vmCommand(), s.hostCommand(), s.pingCommand(),
		s.execCommand(), s.netnsCommand(), s.tablesCommand(), s.envCommand(), s.guardCommand())
	c.AddCommand(s.daemonCommands()...)
	return c
}

// lab is the lab that the flags name.
func (s *labSession) lab() (*lab.Lab, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("own program: %w", err)
	}
	cfg := lab.Config{Culvert: []string{self}, Guard: true}
	if root := s.env.Getenv("CULVERT_GUESTS"); root != "" {
		cfg.GuestRoots = []string{root}
	}
	return lab.New(s.name, cfg)
}

// say prints a document if that was asked for, else text.
func (s *labSession) say(c *cobra.Command, text string, doc any) error {
	if f := c.Flag("output"); f != nil && f.Value.String() == "json" {
		return writeJSON(s.env.Stdout, doc)
	}
	_, err := io.WriteString(s.env.Stdout, text)
	return err
}

func (s *labSession) upCommand() *cobra.Command {
	var t lab.Topology
	var empty bool
	var underlay, vms string
	c := verb("up", "Build the lab, or complete the one that is there", "  sudo culvert lab up\n  sudo culvert lab up --hosts 2 --empty --lab mine\n  sudo culvert lab up --vms qemu --libvirt", exactly(),
		func(c *cobra.Command, _ []string) error {
			if underlay == "ipv6" {
				return &api.LaterError{Field: "--underlay", Value: underlay, Use: "--underlay ipv4", With: "the IPv6 underlay"}
			}
			if underlay != "ipv4" {
				return &overlay.FieldError{Field: "--underlay", Value: underlay, Allowed: "ipv4"}
			}
			if t.VMs = vms; vms == "namespaces" {
				t.VMs = ""
			}
			l, err := s.lab()
			if err != nil {
				return err
			}
			r, err := l.Up(c.Context(), t, empty)
			if err != nil {
				return err
			}
			doc := statusDoc(r.State)
			doc.Changed, doc.Seconds = &r.Changed, r.Took.Seconds()
			return s.say(c, r.Text(), doc)
		})
	c.Flags().IntVar(&t.Hosts, "hosts", 3, "number of hosts")
	c.Flags().BoolVar(&empty, "empty", false, "hosts and manager only: no networks, no VMs")
	c.Flags().BoolVar(&t.Flat, "flat", false, "hosts on one underlay segment instead of a routed one")
	c.Flags().BoolVar(&t.Outside, "outside", false, "a network outside, to try gateways on: device out0 of each host, router 203.0.113.1 (node out)")
	c.Flags().BoolVar(&t.Libvirt, "libvirt", false, "a libvirtd on every host, to try virsh with")
	c.Flags().StringVar(&vms, "vms", "namespaces", "what the VMs are: namespaces, or qemu for real guests")
	c.Flags().StringVar(&underlay, "underlay", "ipv4", "address family of the underlay")
	c.Flags().IntVar(&t.UnderlayMTU, "underlay-mtu", lab.DefaultUnderlayMTU, "MTU of the underlay in bytes")
	return c
}

func (s *labSession) downCommand() *cobra.Command {
	return verb("down", "Remove the lab and everything of it", "  sudo culvert lab down", exactly(),
		func(c *cobra.Command, _ []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			was, err := l.Down(c.Context())
			if err != nil {
				return err
			}
			text := fmt.Sprintf("Lab %q is gone.\n", s.name)
			if !was {
				text = fmt.Sprintf("There is no lab %q (unchanged).\n", s.name)
			}
			return s.say(c, text, labChange{api.Version, "LabDown", s.name, was})
		})
}

func (s *labSession) listCommand() *cobra.Command {
	return verb("list", "List the labs of this machine", "  culvert lab list", exactly(),
		func(c *cobra.Command, _ []string) error {
			names, err := lab.List("")
			if err != nil {
				return err
			}
			var text strings.Builder
			doc := labListDoc{APIVersion: api.Version, Kind: "LabList", Items: []labListItem{}}
			for _, n := range names {
				item := labListItem{Name: n}
				l, err := lab.New(n, lab.Config{})
				if err != nil {
					return err
				}
				line := "half built: culvert lab down --lab " + n
				if st, err := l.Status(); err == nil {
					item.Hosts, item.VMs, item.Ready = st.Topology.Hosts, len(st.VMs), true
					line = fmt.Sprintf("%d hosts, %d VMs", item.Hosts, item.VMs)
				}
				doc.Items = append(doc.Items, item)
				fmt.Fprintf(&text, "%-20s  %s\n", n, line)
			}
			return s.say(c, text.String(), doc)
		})
}

func (s *labSession) labStatusCommand() *cobra.Command {
	return verb("status", "Show hosts, daemons and VMs of the lab", "  culvert lab status", exactly(),
		func(c *cobra.Command, _ []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			st, err := l.Status()
			if err != nil {
				return err
			}
			return s.say(c, st.Text(), statusDoc(st))
		})
}

func (s *labSession) pingCommand() *cobra.Command {
	var o lab.PingOptions
	var all bool
	c := verb("ping VM TARGET", "Ping from a VM; exit code 1 unless all came back", "  sudo culvert lab ping vm1 vm6\n  sudo culvert lab ping vm1 10.1.0.16 --count 100 --interval 1ms\n  sudo culvert lab ping vm1 --broadcast",
		func(c *cobra.Command, args []string) error {
			if all {
				return exactly("VM")(c, args)
			}
			return exactly("VM", "TARGET")(c, args)
		},
		func(c *cobra.Command, args []string) error {
			if o.Count < 1 || o.Count > 1_000_000 {
				return &overlay.FieldError{Field: "--count", Value: fmt.Sprint(o.Count), Allowed: "1 to 1000000"}
			}
			if err := duration("interval", o.Interval, time.Hour); err != nil {
				return err
			}
			l, err := s.lab()
			if err != nil {
				return err
			}
			vm, err := l.VM(args[0])
			if err != nil {
				return err
			}
			if all || vm.Everyone(args[1]) {
				vm, r, err := l.PingAll(c.Context(), args[0], o)
				if err != nil {
					return err
				}
				return s.done(c, lab.BroadcastText(vm, r), pingDoc(r), len(r.Answered) > 0)
			}
			r, err := l.PingVM(c.Context(), args[0], args[1], o)
			if err != nil {
				return err
			}
			if r.Crosses() && r.Result.Received > 0 {
				if err := s.say(c, r.Text(), pingDoc(r.Result)); err != nil {
					return err
				}
				return exitError(api.ExitHurt)
			}
			return s.done(c, r.Text(), pingDoc(r.Result), r.OK())
		})
	c.Flags().IntVar(&o.Count, "count", 5, "number of pings")
	c.Flags().DurationVar(&o.Interval, "interval", 200*time.Millisecond, "time between them")
	c.Flags().BoolVar(&all, "broadcast", false, "ping everyone in the VM's network; shows who answered")
	return c
}

// done prints and ends with exit code 1 if it was not ok.
func (s *labSession) done(c *cobra.Command, text string, doc any, ok bool) error {
	if err := s.say(c, text, doc); err != nil {
		return err
	}
	if !ok {
		return exitError(api.ExitDiffers)
	}
	return nil
}

func (s *labSession) execCommand() *cobra.Command {
	c := verb("exec NODE -- CMD...", "Run a command in a node or VM", "  sudo culvert lab exec vm1 -- ip address",
		func(c *cobra.Command, args []string) error {
			switch _, cmd := nodeAndCommand(args); {
			case len(args) == 0:
				return usage(c, "NODE is missing")
			case len(cmd) == 0:
				return usage(c, "CMD is missing")
			}
			return nil
		},
		func(c *cobra.Command, args []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			node, cmd := nodeAndCommand(args)
			code, err := l.Exec(c.Context(), node, cmd)
			if err != nil {
				return api.Refuse(api.CodeUsage, "the command was not run", err.Error(), "See the nodes: culvert lab status")
			}
			if code != 0 {
				return exitError(code)
			}
			return nil
		})
	c.Flags().SetInterspersed(false)
	return c
}

// nodeAndCommand splits NODE [--] CMD... Flags are not parsed after NODE, so
// the dashes are still there.
func nodeAndCommand(args []string) (node string, cmd []string) {
	if len(args) == 0 {
		return "", nil
	}
	node, cmd = args[0], args[1:]
	if len(cmd) > 0 && cmd[0] == "--" {
		cmd = cmd[1:]
	}
	return node, cmd
}

func (s *labSession) netnsCommand() *cobra.Command {
	return verb("netns NODE", "Print the name of a node's network namespace", "  sudo ip netns exec $(culvert lab netns h1) bridge fdb", exactly("NODE"),
		func(c *cobra.Command, args []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			ns, err := l.Namespace(args[0])
			if err != nil {
				return err
			}
			return s.say(c, ns+"\n", labNamespace{api.Version, "LabNamespace", args[0], ns})
		})
}

func (s *labSession) tablesCommand() *cobra.Command {
	var network string
	c := verb("tables HOST", "Show what a host's kernel holds of the overlay", "  sudo culvert lab tables h1\n  sudo culvert lab tables h1 --network blue", exactly("HOST"),
		func(c *cobra.Command, args []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			bridge := ""
			if network != "" {
				tenant, name := s.network(c, network)
				if bridge, err = l.BridgeOf(c.Context(), tenant, name); err != nil {
					return err
				}
			}
			text, err := l.Tables(c.Context(), args[0], bridge)
			if err != nil {
				return err
			}
			return s.say(c, text, labTables{api.Version, "LabTables", args[0], strings.Split(strings.TrimSuffix(text, "\n"), "\n")})
		})
	c.Flags().StringVar(&network, "network", "", "only this network's devices and rows")
	return c
}

// network splits TENANT/NAME; a bare name is of --tenant.
func (s *labSession) network(c *cobra.Command, arg string) (tenant, name string) {
	if tenant, name, ok := strings.Cut(arg, "/"); ok {
		return tenant, name
	}
	if f := c.Flag("tenant"); f != nil {
		tenant = f.Value.String()
	}
	return tenant, arg
}

func (s *labSession) envCommand() *cobra.Command {
	return verb("env", "Print what client verbs need to speak to the lab's cluster", "  eval $(culvert lab env --lab mine)", exactly(),
		func(c *cobra.Command, _ []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			if _, err := l.Status(); err != nil {
				return err
			}
			return s.say(c, "export CULVERT_CONFIG="+l.ClientConfig()+"\n", labEnvironment{api.Version, "LabEnv", l.ClientConfig()})
		})
}

// guardCommand is started by `lab up` itself.
func (s *labSession) guardCommand() *cobra.Command {
	c := verb("guard NAME", "Watch a lab being built", "", exactly("NAME"),
		func(c *cobra.Command, args []string) error {
			s.name = args[0]
			l, err := s.lab()
			if err != nil {
				return err
			}
			return l.Guard(context.WithoutCancel(c.Context()), s.env.Stdin)
		})
	c.Hidden = true
	return c
}
