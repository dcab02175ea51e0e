//go:build linux

package cli

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/lab"
)

func (s *labSession) vmCommand() *cobra.Command {
	c := &cobra.Command{Use: "vm", Short: "VMs of the lab", RunE: group,
		Example: "  sudo culvert lab vm create vm7 --host h1 --network blue\n  sudo culvert lab vm migrate vm7 h2 --while-pinging\n  sudo culvert lab vm remove vm7"}
	c.AddCommand(s.vmCreateCommand(), s.vmMigrateCommand(), s.vmRemoveCommand())
	return c
}

func (s *labSession) vmCreateCommand() *cobra.Command {
	var v lab.VMSpec
	var network string
	c := verb("create VM", "Make a VM, declare its port and plug it in", "  sudo culvert lab vm create vm7 --host h1 --network blue\n  sudo culvert lab vm create vm8 --host h2 --network blue --ip 10.1.0.18 --announce\n  sudo culvert lab vm create vm9 --host h1 --network blue --qemu", exactly("VM"),
		func(c *cobra.Command, args []string) error {
			if network == "" || v.Host == "" {
				return usage(c, "--host and --network are needed")
			}
			v.Name = args[0]
			v.Tenant, v.Network = s.network(c, network)
			l, err := s.lab()
			if err != nil {
				return err
			}
			r, err := l.CreateVM(c.Context(), v)
			if err != nil {
				return err
			}
			return s.sayVM(c, vmText(r.VM, r.Changed), r)
		})
	f := c.Flags()
	f.StringVar(&v.Host, "host", "", "host that it starts on")
	f.StringVar(&network, "network", "", "network that its NIC is in")
	f.StringVar(&v.MAC, "mac", "", "MAC (default: allocated)")
	f.StringArrayVar(&v.Addresses, "ip", nil, "address, may be repeated (default: allocated)")
	f.BoolVar(&v.Undeclared, "undeclared", false, "declare no port: the device stays unclaimed")
	f.BoolVar(&v.Qemu, "qemu", false, "a real guest, booted by QEMU (default: a namespace)")
	f.BoolVar(&v.DHCP, "dhcp", false, "no address is set: it asks the network, a guest by itself, a namespace by a client that you run (default: the port's are set)")
	f.BoolVar(&v.Announce, "announce", false, "the guest announces itself (default: silent)")
	return c
}

// sayVM prints what became of a VM, and ends with ExitPending if some hosts do
// not hold it yet.
func (s *labSession) sayVM(c *cobra.Command, text string, r lab.VMResult) error {
	if len(r.Pending) > 0 {
		text += "  not yet on " + strings.Join(r.Pending, ", ") + "\n"
	}
	doc := vmChange{api.Version, "LabVM", r.Changed, append([]string{}, r.Pending...), vmDocOf(r.VM)}
	if err := s.say(c, text, doc); err != nil {
		return err
	}
	if len(r.Pending) > 0 {
		return exitError(api.ExitPending)
	}
	return nil
}

func vmText(vm lab.VM, changed bool) string {
	word := "created"
	if !changed {
		word = "unchanged"
	}
	text := fmt.Sprintf("%s %s: %s", vm.Name, word, vm.MAC)
	for _, a := range vm.Addresses {
		text += " " + a.Addr().String()
	}
	return text + fmt.Sprintf(", network %s, on %s\n", vm.NetworkName(), vm.Host)
}

// pingsWhileMoving is how many pings go with a migration: 2 s of them.
const pingsWhileMoving = 2000

func (s *labSession) vmMigrateCommand() *cobra.Command {
	var pinging bool
	c := verb("migrate VM HOST", "Move a VM to another host", "  sudo culvert lab vm migrate vm1 h3 --while-pinging", exactly("VM", "HOST"),
		func(c *cobra.Command, args []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			var o lab.MigrateOptions
			if pinging {
				o.Pings = pingsWhileMoving
			}
			r, err := l.Migrate(c.Context(), args[0], args[1], o)
			if err != nil {
				return err
			}
			if err := s.say(c, r.Text(), migrationDoc(r)); err != nil {
				return err
			}
			if len(r.Away) > 0 {
				return exitError(api.ExitPending)
			}
			return nil
		})
	c.Flags().BoolVar(&pinging, "while-pinging", false, "ping it meanwhile, a thousand times a second, and count what is lost")
	return c
}

func (s *labSession) vmRemoveCommand() *cobra.Command {
	return verb("remove VM", "Remove a VM and its declared port", "  sudo culvert lab vm remove vm7", exactly("VM"),
		func(c *cobra.Command, args []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			r, err := l.RemoveVM(c.Context(), args[0])
			if err != nil {
				return err
			}
			text := args[0] + " removed\n"
			if !r.Changed {
				text = args[0] + " is not there (unchanged)\n"
			}
			return s.sayVM(c, text, r)
		})
}

// daemonCommands are the verbs that act on a node's daemon alone.
func (s *labSession) daemonCommands() []*cobra.Command {
	signal := func(word, past, short string, sig syscall.Signal) *cobra.Command {
		return s.daemonCommand(word, past, short, func(ctx context.Context, l *lab.Lab, node string) (bool, error) {
			return true, l.Signal(ctx, node, sig)
		})
	}
	return []*cobra.Command{
		signal("kill", "killed", "Kill a node's daemon; its kernel stays as it is", syscall.SIGKILL),
		signal("stop", "stopped", "Stop a node's daemon without ending it (SIGSTOP)", syscall.SIGSTOP),
		signal("cont", "continued", "Let a stopped daemon go on (SIGCONT)", syscall.SIGCONT),
		s.daemonCommand("start", "started", "Start a node's daemon unless it runs", func(ctx context.Context, l *lab.Lab, node string) (bool, error) {
			return l.Start(ctx, node)
		}),
	}
}

func (s *labSession) daemonCommand(word, past, short string, act func(context.Context, *lab.Lab, string) (bool, error)) *cobra.Command {
	return verb(word+" NODE", short, "  sudo culvert lab "+word+" h1", exactly("NODE"),
		func(c *cobra.Command, args []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			changed, err := act(c.Context(), l, args[0])
			if err != nil {
				return err
			}
			text := "daemon of " + args[0] + " " + past + "\n"
			if !changed {
				text = "daemon of " + args[0] + " runs already (unchanged)\n"
			}
			return s.say(c, text, labChange{api.Version, "LabDaemon", args[0], changed})
		})
}
