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

// maxDevice is the longest name of a network device in bytes: IFNAMSIZ less
// the closing zero (linux/if.h).
const maxDevice = 15

// jsonAttach is the document of `attach` and `detach`.
type jsonAttach struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Action     string   `json:"action"` // attached, detached, unchanged
	Port       string   `json:"port"`
	Device     string   `json:"device"`
	Network    string   `json:"network,omitempty"`
	Bridge     string   `json:"bridge,omitempty"`
	MAC        string   `json:"mac,omitempty"`
	Addresses  []string `json:"addresses,omitempty"`
}

// onAgent runs f against the agent of this host.
func (s *session) onAgent(c *cobra.Command, socket, port string, f func(context.Context, *client.Local, name) error) error {
	if err := s.check(); err != nil {
		return err
	}
	n, err := s.name("PORT", port)
	if err != nil {
		return err
	}
	if n.tenant == "" {
		n.tenant = api.DefaultTenant
	}
	l := client.NewLocal(socket)
	defer l.Close()
	ctx, cancel := context.WithTimeout(c.Context(), callTimeout)
	defer cancel()
	return f(ctx, l, n)
}

func (s *session) attachCommand() *cobra.Command {
	var dev, socket string
	c := verb("attach PORT --dev DEV", "On a host: tie a device to a port", "  sudo culvert attach vm1 --dev tap0", exactly("PORT"),
		func(c *cobra.Command, args []string) error {
			if dev == "" {
				return usage(c, "--dev is missing")
			}
			if len(dev) > maxDevice || strings.ContainsAny(dev, "/ \t\n:") {
				return &overlay.FieldError{Field: "--dev", Value: dev, Allowed: "the name of a network device of this host"}
			}
			return s.onAgent(c, socket, args[0], func(ctx context.Context, l *client.Local, n name) error {
				r, err := l.AttachPort(ctx, &culvertv1.AttachPortRequest{Tenant: n.tenant, Port: n.name, Device: dev})
				if err != nil {
					return err
				}
				if s.output == "json" {
					return writeJSON(s.env.Stdout, jsonAttach{api.Version, "Attachment", r.GetAction(), n.String(), dev, r.GetNetwork(), r.GetBridge(), r.GetMac(), r.GetAddresses()})
				}
				_, err = fmt.Fprintf(s.env.Stdout, "port %s %s: device %s in %s, network %s, %s\n", n, r.GetAction(), dev, r.GetBridge(), r.GetNetwork(),
					strings.Join(append(append([]string{}, r.GetAddresses()...), r.GetMac()), ", "))
				return err
			})
		})
	c.Flags().StringVar(&dev, "dev", "", "network device of this host")
	c.Flags().StringVar(&socket, "agent-socket", defaultAgentSocket, "UNIX socket of the agent")
	return c
}

func (s *session) detachCommand() *cobra.Command {
	var socket string
	c := verb("detach PORT", "On a host: untie the device of a port", "  sudo culvert detach vm1", exactly("PORT"),
		func(c *cobra.Command, args []string) error {
			return s.onAgent(c, socket, args[0], func(ctx context.Context, l *client.Local, n name) error {
				r, err := l.DetachPort(ctx, &culvertv1.DetachPortRequest{Tenant: n.tenant, Port: n.name})
				if err != nil {
					return err
				}
				if s.output == "json" {
					return writeJSON(s.env.Stdout, jsonAttach{APIVersion: api.Version, Kind: "Attachment", Action: r.GetAction(), Port: n.String(), Device: r.GetDevice()})
				}
				line := fmt.Sprintf("port %s %s", n, r.GetAction())
				if r.GetDevice() != "" {
					line += ": device " + r.GetDevice()
				}
				_, err = fmt.Fprintln(s.env.Stdout, line)
				return err
			})
		})
	c.Flags().StringVar(&socket, "agent-socket", defaultAgentSocket, "UNIX socket of the agent")
	return c
}

// String is the name as people write it.
func (n name) String() string {
	return title(&culvertv1.Metadata{Tenant: n.tenant, Name: n.name})
}

func (s *session) tokenCommand() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Tokens let machines and operators in", RunE: group, Example: "  culvert token create --role agent"}
	var role, host string
	var expires time.Duration
	var uses uint32
	create := verb("create --role ROLE", "Make a token", "  culvert token create --role agent\n  culvert token create --role agent --uses 20 --expires 8h", exactly(),
		func(c *cobra.Command, _ []string) error {
			if err := checkToken(c, role, host, expires, uses); err != nil {
				return err
			}
			return s.with(func(cl *client.Client) error {
				ctx, cancel := context.WithTimeout(c.Context(), callTimeout)
				defer cancel()
				r, err := cl.CreateToken(ctx, &culvertv1.CreateTokenRequest{Role: role, ExpiresSeconds: expires.Seconds(), Uses: uses, Host: host})
				if err != nil {
					return err
				}
				if s.output == "json" {
					return writeJSON(s.env.Stdout, struct {
						APIVersion string `json:"apiVersion"`
						Kind       string `json:"kind"`
						Token      string `json:"token"`
						Expires    string `json:"expires"`
					}{api.Version, "Token", r.GetToken(), r.GetExpires()})
				}
				if _, err := fmt.Fprintf(s.env.Stderr, "For one %s, valid until %s, %s. On the machine itself:\n", role, r.GetExpires(), count(int(uses), "use")); err != nil {
					return err
				}
				_, err = fmt.Fprintf(s.env.Stdout, "sudo culvert join %s\n", r.GetToken())
				return err
			})
		})
	create.Flags().StringVar(&role, "role", "", "agent or operator")
	create.Flags().DurationVar(&expires, "expires", time.Hour, "how long it is valid")
	create.Flags().Uint32Var(&uses, "uses", 1, "how often it may be used")
	create.Flags().StringVar(&host, "host", "", "only for a host of this name")
	c.AddCommand(create)
	return c
}

func checkToken(c *cobra.Command, role, host string, expires time.Duration, uses uint32) error {
	switch role {
	case "":
		return usage(c, "--role is missing")
	case "agent", "operator":
	case "manager":
		return &api.LaterError{Field: "--role", Value: role, Use: "agent or operator", With: "several managers"}
	default:
		return &overlay.FieldError{Field: "--role", Value: role, Allowed: "agent or operator"}
	}
	if uses < 1 || uses > 10_000 {
		return &overlay.FieldError{Field: "--uses", Value: fmt.Sprint(uses), Allowed: "1 to 10000"}
	}
	if host != "" {
		if err := overlay.CheckName("--host", host); err != nil {
			return err
		}
	}
	return duration("expires", expires, 30*24*time.Hour)
}

func (s *session) versionCommand() *cobra.Command {
	return verb("version", "Print the version of this program", "  culvert version\n  culvert version -o json", exactly(),
		func(*cobra.Command, []string) error {
			if err := s.check(); err != nil {
				return err
			}
			if s.output == "json" {
				return writeJSON(s.env.Stdout, struct {
					APIVersion string `json:"apiVersion"`
					Kind       string `json:"kind"`
					Version    string `json:"version"`
				}{api.Version, "Version", s.env.Version})
			}
			_, err := fmt.Fprintf(s.env.Stdout, "culvert %s (%s)\n", s.env.Version, api.Version)
			return err
		})
}
