// Command bench measures what Culvert promises in time and memory, on whole
// labs of real processes and real kernels: how long an endpoint takes to
// appear in all other hosts' tables and to go, how an agent comes back, what
// daemons weigh, how fast tables follow a guest that moves, and a host that
// dies; what the programs on every port cost, and routing between networks; how
// long a first packet waits that nobody knew the way of; and what forged frames
// and floods of questions come to.
// It prints a JSON line a figure and a table at the end.
//
// Arrival is taken by a netlink listener of its own in each host's namespace,
// never from an agent's or a manager's word. Configurations are interleaved
// sample by sample, and the floor (the kernel alone, a durable commit alone) is
// measured between them, so that a noisy machine shows in both.
//
// It needs root: `make bench`, or
//
//	go run ./test/bench -culvert bin/culvert [-samples 200] [-only appear,restart,memory,share,boot,snoop,routed,demand,forged,death,gateway,migrate]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type options struct {
	culvert   string // absolute path of the binary
	samples   int    // of each configuration
	endpoints int    // the many that are there already
	restarts  int
	more      int // endpoints that appear while an agent restarts
	deaths    int // of a host
	calm      time.Duration
	moves     int // of each guest
	silent    int // of them on the plain network, of the silent guest
	rounds    int // with programs and without
	forged    int // frames of each kind
	only      string
	small     bool
	hosts     int
	admission string // of the network; empty: as declared
	// distribution of the network; empty: push
	distribution string
}

func (o options) wants(what string) bool {
	return o.only == "" || strings.Contains(","+o.only+",", ","+what+",")
}

// sizes are numbers of hosts, ascending; of a small run the first alone, and
// where one number was asked for that one.
func (o options) sizes(all ...int) []int {
	if o.hosts != 0 {
		return []int{o.hosts}
	}
	if o.small {
		return all[:1]
	}
	return all
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == crowdVerb {
		if err := runCrowd(os.Args[2], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "crowd:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 2 && os.Args[1] == burnVerb {
		runBurn()
	}
	var o options
	flag.StringVar(&o.culvert, "culvert", "bin/culvert", "the binary to measure")
	flag.IntVar(&o.samples, "samples", 200, "samples of each configuration")
	flag.IntVar(&o.endpoints, "endpoints", 10_000, "endpoints that are there already, where many are")
	flag.IntVar(&o.restarts, "restarts", 11, "restarts of an agent")
	flag.IntVar(&o.more, "more", 100, "endpoints that appear while it restarts")
	flag.IntVar(&o.deaths, "deaths", 20, "deaths of a host, and of one that has a gateway")
	flag.StringVar(&o.only, "only", "", "some of appear,restart,memory,share,boot,snoop,routed,demand,forged,death,gateway,migrate; empty: all")
	flag.IntVar(&o.hosts, "hosts", 0, "only the lab of so many hosts")
	flag.IntVar(&o.moves, "moves", 50, "live migrations of each of two guests, and on a plain network")
	flag.IntVar(&o.silent, "silent", 5, "moves of the silent guest on the plain network, up to 90 s each")
	flag.DurationVar(&o.calm, "calm", 10*time.Minute, "how long no host may be declared dead under load; 0: not at all")
	flag.IntVar(&o.rounds, "rounds", 31, "rounds with programs and without")
	flag.IntVar(&o.forged, "forged", 10_000_000, "forged frames of each kind")
	flag.BoolVar(&o.small, "small", false, "leave out the labs of 8 hosts and more")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it builds labs of network namespaces, which root alone may")
	}
	if o.culvert, err = filepath.Abs(o.culvert); err != nil {
		return err
	}
	if o.samples < 11 || o.restarts < 11 || o.deaths < 11 || o.moves < 11 || o.silent < 1 || o.rounds < 11 || o.endpoints < 1 || o.forged < 1 || o.more < 1 {
		return errors.New("a median wants 11 samples or more, and many endpoints are one at least")
	}
	out := &printer{w: os.Stdout}
	if err := out.machine(); err != nil {
		return err
	}
	var worlds []*world
	defer func() {
		for _, w := range worlds {
			err = errors.Join(err, w.close(context.WithoutCancel(ctx)))
		}
	}()
	for _, size := range []struct{ hosts, endpoints int }{{2, 0}, {2, o.endpoints}, {8, 0}, {8, o.endpoints}} {
		if o.hosts != 0 && (size.hosts != o.hosts || size.endpoints != 0) {
			continue
		}
		if size.hosts != 2 && (o.small || !o.wants("appear")) || !o.wants("appear") && !o.wants("memory") && !o.wants("restart") {
			continue
		}
		fmt.Fprintf(os.Stderr, "building a lab of %d hosts with %d endpoints\n", size.hosts, size.endpoints)
		w, err := newWorld(ctx, o, size.hosts, size.endpoints)
		worlds = append(worlds, w)
		if err != nil {
			return fmt.Errorf("lab of %d hosts with %d endpoints: %w", size.hosts, size.endpoints, err)
		}
	}
	if o.wants("appear") {
		if err := appear(ctx, o, worlds, out); err != nil {
			return err
		}
	}
	if o.wants("memory") {
		for _, w := range worlds {
			if err := memory(w, out); err != nil {
				return err
			}
		}
	}
	if o.wants("restart") {
		if err := restart(ctx, o, worlds[1], out); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name    string
		measure func(context.Context, options, *printer) error
	}{{"share", share}, {"boot", boot}, {"snoop", snoop}, {"routed", routed}, {"demand", demand}, {"forged", forged}, {"death", deaths}, {"gateway", takeovers}, {"migrate", migrate}} {
		if !o.wants(f.name) {
			continue
		}
		if err := f.measure(ctx, o, out); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	out.table()
	return nil
}
