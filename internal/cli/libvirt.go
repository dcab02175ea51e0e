package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/libvirt"
)

// hookPatience is how long libvirt is kept waiting for an agent that is not
// ready: it holds the domain meanwhile.
const hookPatience = 5 * time.Second

// jsonHooks is the document of `libvirt install-hooks` and `remove-hooks`.
type jsonHooks struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Action     string   `json:"action"` // written, removed, unchanged
	Paths      []string `json:"paths"`
}

func (s *session) libvirtCommand() *cobra.Command {
	c := &cobra.Command{Use: "libvirt", Short: "On a host: libvirt asks before a guest starts or arrives", RunE: group, Example: "  sudo culvert libvirt install-hooks"}
	c.AddCommand(s.installHooksCommand(), s.removeHooksCommand(), s.hookCommand())
	return c
}

func (s *session) installHooksCommand() *cobra.Command {
	var dir, socket string
	c := verb("install-hooks", "Have libvirt ask before a guest starts or arrives", "  sudo culvert libvirt install-hooks", exactly(),
		func(c *cobra.Command, _ []string) error {
			if err := s.check(); err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			if socket, err = filepath.Abs(socket); err != nil {
				return fmt.Errorf("find the agent's socket: %w", err)
			}
			h := libvirt.Hooks{Dir: dir, Program: program, Socket: socket, Single: libvirt.SingleHook(c.Context())}
			path, changed, err := h.Install()
			if err != nil {
				return err
			}
			if !changed {
				return s.printHooks("unchanged", path)
			}
			if _, err := fmt.Fprintln(s.env.Stderr, "libvirt looks for hooks when its daemon starts. If it had none, restart it; guests go on:\n  sudo systemctl restart libvirtd   (or virtqemud)"); err != nil {
				return err
			}
			return s.printHooks("written", path)
		})
	c.Long = "Writes a hook script by which libvirt asks the agent of this host whether the ports of a guest are ready,\nbefore the guest starts here or arrives by migration. A refusal and its reason are shown where the guest was\nstarted. Scripts of other programs are left alone."
	c.Flags().StringVar(&dir, "dir", libvirt.HooksDir, "libvirt's folder of hooks")
	c.Flags().StringVar(&socket, "agent-socket", defaultAgentSocket, "UNIX socket of the agent")
	return c
}

func (s *session) removeHooksCommand() *cobra.Command {
	var dir string
	c := verb("remove-hooks", "Have libvirt ask no more", "  sudo culvert libvirt remove-hooks", exactly(),
		func(*cobra.Command, []string) error {
			if err := s.check(); err != nil {
				return err
			}
			removed, err := libvirt.Hooks{Dir: dir}.Remove()
			if err != nil {
				return err
			}
			if len(removed) == 0 {
				return s.printHooks("unchanged")
			}
			return s.printHooks("removed", removed...)
		})
	c.Flags().StringVar(&dir, "dir", libvirt.HooksDir, "libvirt's folder of hooks")
	return c
}

func (s *session) printHooks(action string, paths ...string) error {
	if s.output == "json" {
		return writeJSON(s.env.Stdout, jsonHooks{api.Version, "LibvirtHooks", action, append([]string{}, paths...)})
	}
	line := "hook " + action
	for _, p := range paths {
		line += " " + p
	}
	_, err := fmt.Fprintln(s.env.Stdout, line)
	return err
}

// hookCommand prints nothing to stdout: libvirt takes what its migrate hook
// prints for a new description of the guest.
func (s *session) hookCommand() *cobra.Command {
	var socket string
	c := verb("hook OBJECT OPERATION SUBOPERATION EXTRA", "What the hook script runs; the guest's description is read from stdin",
		"  culvert libvirt hook web1 prepare begin -", exactly("OBJECT", "OPERATION", "SUBOPERATION", "EXTRA"),
		func(c *cobra.Command, args []string) error {
			l := client.NewLocal(socket)
			defer l.Close()
			ctx, cancel := context.WithTimeout(c.Context(), hookPatience)
			defer cancel()
			call := libvirt.Call{Domain: args[0], Operation: args[1], Sub: args[2]}
			return libvirt.Gate(ctx, call, s.env.Stdin, func(ctx context.Context, n hoststate.NIC, incoming bool) error {
				_, err := l.Prepare(ctx, &culvertv1.PrepareRequest{
					Mac: n.MAC.String(), Bridge: n.Bridge, Network: n.Network, Tenant: n.Tenant, Port: n.Port, Vm: n.VM, Incoming: incoming,
				})
				return err
			})
		})
	c.Flags().StringVar(&socket, "agent-socket", defaultAgentSocket, "UNIX socket of the agent")
	return c
}
