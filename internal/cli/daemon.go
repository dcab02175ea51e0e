package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"culvert/internal/api"
)

// ManagerOptions are the flags of `manager run`.
type ManagerOptions struct {
	Dir    string // of its data
	Listen string // address with port; empty: no TCP
	Socket string // path of its UNIX socket; empty: none
	// HostDeath is how long after its last sign of life a dead host is in
	// nobody's tables any more; 0: never.
	HostDeath time.Duration
}

// AgentOptions are the flags of `agent run`.
type AgentOptions struct {
	Dir    string // of its data, with what `join` left there
	Socket string // path of its UNIX socket
	VTEP   []string
	// Libvirt is the socket of this host's libvirt daemon; empty: looked for;
	// LibvirtOff: it is not asked.
	Libvirt string
	// NetnsPrefix begins the names of the network namespaces of gateways.
	NetnsPrefix string
}

// LibvirtOff is the value of --libvirt-socket that means no libvirt.
const LibvirtOff = "off"

// InitOptions are the flags of `init`.
type InitOptions struct {
	VTEP    []string
	NoStart bool
	Dir     string // below it are the data directories of the daemons
	Listen  string
}

// JoinOptions are the argument and flags of `join`.
type JoinOptions struct {
	Token   string
	Host    string // name to join under; empty: the machine's own
	VTEP    []string
	NoStart bool
	Dir     string
}

// Places of the daemons, unless flags name others.
const (
	defaultDir           = "/var/lib/culvert"
	defaultListen        = ":7443"
	defaultManagerSocket = "/run/culvert/manager.sock"
	defaultAgentSocket   = "/run/culvert/agent.sock"
)

// Times of --host-death.
const (
	defaultHostDeath = 600 * time.Millisecond
	leastHostDeath   = 300 * time.Millisecond
	mostHostDeath    = time.Minute
)

func managerCommand(env *Env) *cobra.Command {
	c := &cobra.Command{Use: "manager", Short: "The manager of a cluster", RunE: group, Example: "  culvert manager run"}
	var o ManagerOptions
	run := &cobra.Command{
		Use: "run", Short: "Run a manager in the foreground", Args: exactly(),
		Long:    "Runs a manager on its own store until it is told to end. The data directory is made by culvert init.",
		Example: "  culvert manager run\n  culvert manager run --dir /srv/culvert/manager --listen 192.0.2.11:7443",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := hostDeath(o.HostDeath); err != nil {
				return err
			}
			return call(c.Context(), "manager run", env.RunManager, o)
		},
	}
	run.Flags().StringVar(&o.Dir, "dir", defaultDir+"/manager", "data directory")
	run.Flags().StringVar(&o.Listen, "listen", defaultListen, "address with port for agents and operators")
	run.Flags().StringVar(&o.Socket, "socket", defaultManagerSocket, "path of the UNIX socket")
	run.Flags().DurationVar(&o.HostDeath, "host-death", defaultHostDeath,
		"how long after its last sign of life a dead host is withdrawn everywhere (0: never)")
	c.AddCommand(run)
	return c
}

func agentCommand(env *Env) *cobra.Command {
	c := &cobra.Command{Use: "agent", Short: "The agent of a host", RunE: group, Example: "  culvert agent run"}
	var o AgentOptions
	run := &cobra.Command{
		Use: "run", Short: "Run the agent of this host in the foreground", Args: exactly(),
		Long:    "Runs the agent of this host until it is told to end. Ending it leaves devices and tables as they are.",
		Example: "  culvert agent run\n  culvert agent run --vtep 192.0.2.12",
		RunE: func(c *cobra.Command, _ []string) error {
			return call(c.Context(), "agent run", env.RunAgent, o)
		},
	}
	run.Flags().StringVar(&o.Dir, "dir", defaultDir+"/agent", "data directory")
	run.Flags().StringVar(&o.Socket, "socket", defaultAgentSocket, "path of the UNIX socket")
	run.Flags().StringArrayVar(&o.VTEP, "vtep", nil, "address of the tunnel end point (default: the one towards the manager)")
	run.Flags().StringVar(&o.NetnsPrefix, "netns-prefix", "culvert-gw-", "what the names of gateways' network namespaces begin with")
	run.Flags().StringVar(&o.Libvirt, "libvirt-socket", "", "UNIX socket of libvirt, or off (default: wherever one answers)")
	c.AddCommand(run)
	return c
}

func initCommand(env *Env) *cobra.Command {
	var o InitOptions
	c := &cobra.Command{
		Use: "init", Short: "Make a cluster with this machine as its first", Args: exactly(),
		Long:    "Makes a cluster: its authority, a manager and an agent on this machine, and your operator's key.\nDone already, it says so and changes nothing.",
		Example: "  sudo culvert init\n  sudo culvert init --vtep 192.0.2.11",
		RunE: func(c *cobra.Command, _ []string) error {
			return call(c.Context(), "init", env.Init, o)
		},
	}
	c.Flags().StringArrayVar(&o.VTEP, "vtep", nil, "address of the tunnel end point (default: the one of the default route)")
	c.Flags().BoolVar(&o.NoStart, "no-start", false, "write no units and start nothing")
	c.Flags().StringVar(&o.Dir, "dir", defaultDir, "directory of all data")
	c.Flags().StringVar(&o.Listen, "listen", defaultListen, "address with port for agents and operators")
	return c
}

func joinCommand(env *Env) *cobra.Command {
	var o JoinOptions
	c := &cobra.Command{
		Use: "join TOKEN", Short: "Make this machine a host of a cluster", Args: exactly("TOKEN"),
		Long:    "Joins the cluster that made the token. The token has the addresses of the managers and the cluster's\nauthority, so that no other cluster can take its place.",
		Example: "  sudo culvert join cv1.Qm9uZSBpcyBub3QgYSB0b2tlbg.192.0.2.11",
		RunE: func(c *cobra.Command, args []string) error {
			o.Token = args[0]
			return call(c.Context(), "join", env.Join, o)
		},
	}
	c.Flags().StringVar(&o.Host, "host", "", "name of this host (default: the machine's)")
	c.Flags().StringArrayVar(&o.VTEP, "vtep", nil, "address of the tunnel end point (default: the one towards the manager)")
	c.Flags().BoolVar(&o.NoStart, "no-start", false, "write no unit and start nothing")
	c.Flags().StringVar(&o.Dir, "dir", defaultDir, "directory of all data")
	return c
}

// hostDeath checks the flag. Below the least, a host that is only busy would
// be taken for dead; the most is what one message can carry.
func hostDeath(d time.Duration) error {
	if d != 0 && (d < leastHostDeath || d > mostHostDeath) {
		return api.Refuse(api.CodeField, "the manager was not started", fmt.Sprintf("--host-death is %s", d),
			fmt.Sprintf("write 0, or a time from %s to %s, like %s", leastHostDeath, mostHostDeath, defaultHostDeath))
	}
	return nil
}

// call runs what main passed in, if it did: the client verbs build on systems
// where the daemons do not.
func call[O any](ctx context.Context, verb string, f func(context.Context, O) error, o O) error {
	if f == nil {
		return api.Refuse(api.CodeLater, "culvert "+verb+" was not run", "this build has the client verbs only", "use the build for Linux")
	}
	return f(ctx, o)
}

// duration is a flag that wants a positive time.
func duration(field string, d, most time.Duration) error {
	if d <= 0 || d > most {
		return api.Refuse(api.CodeField, "nothing was done", fmt.Sprintf("--%s is %s", field, d), fmt.Sprintf("write a time above 0 and up to %s, like 30s", most))
	}
	return nil
}
