// Command culvert is the whole system in one binary: manager, agent, lab and
// the verbs of operators. This file says what each daemon is made of.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"culvert/internal/agent"
	"culvert/internal/apiserver"
	"culvert/internal/cli"
	"culvert/internal/gateway"
	"culvert/internal/kernel"
	"culvert/internal/libvirt"
	"culvert/internal/manager"
	"culvert/internal/overlay"
	"culvert/internal/store/etcd"
	"culvert/internal/trust"
)

// version is stamped by the linker.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	env := &cli.Env{
		Stdout: os.Stdout, Stderr: os.Stderr, Stdin: os.Stdin, Getenv: os.Getenv, Now: time.Now, Version: version,
		RunManager: runManager, RunAgent: runAgent, Init: found, Join: join,
	}
	os.Exit(cli.Main(ctx, env, os.Args[1:]))
}

// newLog logs to stderr; CULVERT_LOG=debug shows each step.
func newLog() *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("CULVERT_LOG") == "debug" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// runManager is a manager on its embedded store.
func runManager(ctx context.Context, o cli.ManagerOptions) error {
	log := newLog()
	var me managerFile
	if err := load(filepath.Join(o.Dir, managerName), &me, "make a cluster first: culvert init"); err != nil {
		return err
	}
	ca, err := trust.LoadCA(o.Dir)
	if err != nil {
		return fmt.Errorf("read authority: %w", err)
	}
	leaf, err := trust.LoadLeaf(filepath.Join(o.Dir, leafName))
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	st, err := etcd.Open(ctx, etcd.Options{Dir: filepath.Join(o.Dir, "store"), Cluster: me.Cluster, Logger: log})
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	m := manager.New(st, manager.Config{
		Cluster: me.Cluster, ID: me.ID, Log: log, Now: time.Now, Authority: manager.Authority{CA: ca, Advertise: me.Advertise},
		HostDeath: o.HostDeath,
	})
	run := newGroup(ctx)
	run.add(m.Run)
	if o.Listen != "" {
		l, err := net.Listen("tcp", o.Listen)
		if err != nil {
			return errors.Join(fmt.Errorf("listen: %w", err), run.end(), st.Close())
		}
		run.add(func(ctx context.Context) error { return m.ServeTLS(ctx, l, ca.Anchor(time.Now), trust.Fixed(leaf)) })
	}
	if o.Socket != "" {
		l, err := apiserver.Socket(o.Socket)
		if err != nil {
			return errors.Join(err, run.end(), st.Close())
		}
		run.add(func(ctx context.Context) error { return m.ServeSocket(ctx, l) })
	}
	log.Info("manager runs", "cluster", me.Cluster, "version", version)
	return errors.Join(run.wait(), st.Close())
}

// runAgent is the agent of this host.
func runAgent(ctx context.Context, o cli.AgentOptions) error {
	log := newLog()
	var me agentFile
	if err := load(filepath.Join(o.Dir, agentName), &me, "join a cluster first: culvert join TOKEN"); err != nil {
		return err
	}
	leaf, err := trust.LoadLeaf(filepath.Join(o.Dir, leafName))
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	anchor, err := leaf.Anchor(time.Now)
	if err != nil {
		return fmt.Errorf("read authority: %w", err)
	}
	host, err := overlay.ParseUID(me.Host)
	if err != nil {
		return fmt.Errorf("read %s: %w", agentName, err)
	}
	vtep, err := chooseVTEP(o.VTEP, me)
	if err != nil {
		return err
	}
	k, err := kernel.Open(kernel.CurrentNS, kernel.Config{UDPPort: vxlanPort, Log: log})
	if err != nil {
		return fmt.Errorf("open kernel: %w", err)
	}
	var guests *libvirt.Source
	var changed, inquire func()
	if o.Libvirt != cli.LibvirtOff {
		guests = libvirt.New(libvirt.Config{Socket: o.Libvirt, Log: log})
		changed, inquire = func() { guests.Refresh("") }, guests.Inquire
	}
	var a *agent.Agent
	ways := gateway.New(gateway.Config{NS: gateway.CurrentNS, Prefix: o.NetnsPrefix, Log: log, Told: func(s []overlay.GatewayState) { a.GatewaysAre(s) }})
	a = agent.New(k, agent.NewDialer(me.Managers, anchor, trust.Fixed(leaf)), agent.Config{
		Cluster: me.Cluster, Host: host, Name: me.Name, VTEP: vtep, UDPPort: vxlanPort, BootID: bootID(), Version: version,
		Journal: filepath.Join(o.Dir, "journal"), Log: log, Now: time.Now, Changed: changed, Inquire: inquire, Prober: k, Ways: ways,
	})
	run := newGroup(ctx)
	run.add(a.Run)
	run.add(ways.Run)
	if o.Socket != "" {
		l, err := apiserver.Socket(o.Socket)
		if err != nil {
			return errors.Join(err, run.end(), k.Close())
		}
		run.add(func(ctx context.Context) error { return a.ServeSocket(ctx, l) })
	}
	if guests != nil {
		run.add(func(ctx context.Context) error {
			guests.Watch(ctx, func(r libvirt.Report) { a.Guests(ctx, "libvirt", r.Full, r.Answer, r.NICs) })
			return nil
		})
	}
	log.Info("agent runs", "cluster", me.Cluster, "host", me.Name, "vtep", vtep.String(), "version", version)
	return errors.Join(run.wait(), k.Close())
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// load reads one of our own JSON files.
func load(path string, into any, cure string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return notYet(path, cure)
	}
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
