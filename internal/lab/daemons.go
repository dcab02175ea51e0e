package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
)

// managerPort is where the lab's manager listens on the underlay.
const managerPort = 7443

// The commands of the lab's daemons, all in one place: a user of three real
// machines types the same.

func (l *Lab) initCommand(m Node) []string {
	return l.culvert("init", "--dir", l.nodeDir(m.Name), "--listen", managerAddress(m), "--vtep", "none", "--no-start")
}

func (l *Lab) managerCommand(m Node) []string {
	return l.culvert("manager", "run", "--dir", filepath.Join(l.nodeDir(m.Name), "manager"), "--listen", managerAddress(m), "--socket", l.ManagerSocket())
}

func (l *Lab) joinCommand(token string, n Node) []string {
	return l.culvert("join", token, "--dir", l.nodeDir(n.Name), "--vtep", n.Address.Addr().String(), "--host", n.Name, "--no-start")
}

// agentCommand names the host's own libvirt, if it ever comes: the guests of
// the machine that the lab is on are on none of the lab's hosts.
func (l *Lab) agentCommand(n Node) []string {
	return l.culvert("agent", "run", "--dir", filepath.Join(l.nodeDir(n.Name), "agent"), "--vtep", n.Address.Addr().String(), "--socket", l.AgentSocket(n.Name), "--libvirt-socket", l.LibvirtSocket(n.Name), "--netns-prefix", nsOfGateways(l.name, n.Name))
}

func managerAddress(m Node) string { return netip.AddrPortFrom(m.Address.Addr(), managerPort).String() }

func (l *Lab) culvert(args ...string) []string {
	return append(l.cfg.Culvert[:len(l.cfg.Culvert):len(l.cfg.Culvert)], args...)
}

// AgentSocket is the path of the local socket of a host's agent.
func (l *Lab) AgentSocket(host string) string { return filepath.Join(l.nodeDir(host), "agent.sock") }

// ManagerSocket is the path of the manager's socket. By it a lab is used from
// outside its namespaces.
func (l *Lab) ManagerSocket() string { return filepath.Join(l.nodeDir("m1"), "manager.sock") }

// dial opens the cluster's API.
func (l *Lab) dial() (*client.Client, error) {
	cfg, err := client.Load(l.ClientConfig())
	if err != nil {
		return nil, err
	}
	return client.New(cfg)
}

// found makes the cluster as a user makes one: init, token, join; and starts
// its daemons.
func (l *Lab) found(ctx context.Context, s *state) error {
	for _, n := range s.Topology.Nodes() {
		if err := os.MkdirAll(l.nodeDir(n.Name), 0o700); err != nil {
			return fmt.Errorf("directory of %s: %w", n.Name, err)
		}
	}
	m := s.Topology.Nodes()[0]
	// The operator's key goes into the lab's directory: the user's own
	// configuration is of another cluster, or of none.
	home := "XDG_CONFIG_HOME=" + filepath.Join(l.nodeDir(m.Name), "config")
	if _, err := runIn(ctx, NSOfNode(l.name, m.Name), home, l.initCommand(m)); err != nil {
		return fmt.Errorf("make cluster: %w", err)
	}
	if err := client.Save(l.ClientConfig(), client.Config{Cluster: "lab-" + l.name, Socket: l.ManagerSocket()}); err != nil {
		return err
	}
	if _, err := l.ensureDaemon(s, m); err != nil {
		return err
	}
	cl, err := l.awaitManager(ctx, s)
	if err != nil {
		return err
	}
	defer cl.Close()
	token, err := cl.CreateToken(ctx, &culvertv1.CreateTokenRequest{Role: "agent", ExpiresSeconds: 600, Uses: uint32(s.Topology.Hosts)})
	if err != nil {
		return fmt.Errorf("make token: %w", err)
	}
	// Joining is mostly waiting and arithmetic of keys: a few at a time.
	var joins errgroup.Group
	joins.SetLimit(4)
	for _, n := range s.Topology.HostNodes() {
		joins.Go(func() error {
			if _, err := runIn(ctx, NSOfNode(l.name, n.Name), "", l.joinCommand(token.GetToken(), n)); err != nil {
				return fmt.Errorf("join %s: %w", n.Name, err)
			}
			return nil
		})
	}
	if err := joins.Wait(); err != nil {
		return err
	}
	for _, n := range s.Topology.HostNodes() {
		if _, err := l.ensureDaemon(s, n); err != nil {
			return err
		}
	}
	return l.awaitCluster(ctx, s)
}

// ensureDaemon starts a node's daemon unless it runs, and notes it.
func (l *Lab) ensureDaemon(s *state, n Node) (started bool, err error) {
	if d, ok := s.daemon(n.Name); ok && d.State() != "dead" {
		return false, nil
	}
	argv := l.agentCommand(n)
	if n.Number == 0 {
		argv = l.managerCommand(n)
	}
	d, err := launch{node: n.Name, namespace: NSOfNode(l.name, n.Name), dir: l.nodeDir(n.Name), log: l.logPath(n.Name), argv: argv}.start()
	if err != nil {
		return false, err
	}
	s.setDaemon(d)
	return true, l.save(s)
}

// startLimit is how long daemons have to come up on a loaded machine.
const startLimit = 60 * time.Second

// awaitManager waits until the manager answers, or says that it died and why.
func (l *Lab) awaitManager(ctx context.Context, s *state) (*client.Client, error) {
	cl, err := l.dial()
	if err != nil {
		return nil, err
	}
	var last error
	err = poll(ctx, startLimit, func() (bool, error) {
		if err := l.alive(s, "m1"); err != nil {
			return false, err
		}
		_, last = cl.Status(ctx, &culvertv1.StatusRequest{})
		return last == nil, nil
	})
	if errors.Is(err, errTimeout) && last != nil {
		err = last
	}
	if err != nil {
		cl.Close()
		return nil, fmt.Errorf("wait for the manager: %w", err)
	}
	return cl, nil
}

// awaitCluster waits until the manager answers and every host is connected.
func (l *Lab) awaitCluster(ctx context.Context, s *state) error {
	cl, err := l.awaitManager(ctx, s)
	if err != nil {
		return err
	}
	defer cl.Close()
	var waiting string
	err = poll(ctx, startLimit, func() (bool, error) {
		for _, n := range s.Topology.Nodes() {
			if err := l.alive(s, n.Name); err != nil {
				return false, err
			}
		}
		st, err := cl.Status(ctx, &culvertv1.StatusRequest{})
		if err != nil {
			return false, fmt.Errorf("ask the manager: %w", err)
		}
		up := map[string]bool{}
		for _, h := range st.GetHosts() {
			up[h.GetMetadata().GetName()] = h.GetStatus().GetState() == "connected"
		}
		waiting = ""
		for _, n := range s.Topology.HostNodes() {
			if !up[n.Name] {
				waiting += " " + n.Name
			}
		}
		return waiting == "", nil
	})
	if err != nil {
		return fmt.Errorf("wait for hosts%s: %w", waiting, err)
	}
	return nil
}

// alive is nil as long as the node's daemon is; else it says why it is not,
// with the end of its log.
func (l *Lab) alive(s *state, node string) error {
	d, ok := s.daemon(node)
	if ok && d.State() != "dead" {
		return nil
	}
	log, err := os.ReadFile(l.logPath(node))
	if err != nil {
		log = []byte(err.Error())
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return api.Refuse(api.CodeServer, fmt.Sprintf("lab %q is not ready", l.name), "the daemon of "+node+" ended by itself",
		"Its log ends as above.", lines[max(0, len(lines)-5):]...)
}
