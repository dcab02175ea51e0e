package survive

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"culvert/internal/lab"
)

// dial opens what f opens in a node's namespace.
func dial[T any](r *rig, node string, f func() (T, error)) T {
	r.t.Helper()
	ns, err := r.lab.Namespace(node)
	if err != nil {
		r.t.Fatal(err)
	}
	var out T
	if err := lab.InNS(ns, func() (err error) { out, err = f(); return err }); err != nil {
		r.t.Fatalf("in %s: %v", node, err)
	}
	return out
}

// A connection of a guest to a server outside goes on by another host when the
// one that has the gateway fails, and the first has it no more when it returns.
func TestConnectionsOutliveATakeOver(t *testing.T) {
	t.Parallel()
	r := newRigIn(t, lab.Topology{Hosts: 3, Outside: true})
	r.must("domain", "create", "shop")
	r.must("network", "create", "web", "--subnet", "10.20.0.0/24", "--domain", "shop")
	r.vm(lab.VMSpec{Name: "vm1", Host: "h3", Network: "web", MAC: "52:54:00:00:00:11", Addresses: []string{"10.20.0.11"}})
	r.must("gateway", "create", "out", "--domain", "shop", "--host", "h1", "--host", "h2", "--uplink", "out0", "--address", "203.0.113.10/24", "--next-hop", "203.0.113.1")
	r.connected()
	r.judged(r.hosts...)
	hosts := func(want string) func() error {
		return func() error {
			out, err := r.run("gateway", "list")
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("want %s:\n%s", want, out)
			}
			return err
		}
	}
	r.await(20*time.Second, "gateway on h1", hosts("h1:active h2:ready"))
	r.mustIn("vm1", "ip", "route", "replace", "default", "via", "10.20.0.2")
	r.await(20*time.Second, "way out", func() error {
		_, err := r.in("vm1", "ping", "-c", "1", "-W", "1", "203.0.113.1")
		return err
	})

	l := dial(r, "out", func() (net.Listener, error) { return net.Listen("tcp4", "203.0.113.1:7") })
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c) // until the guest ends it
			c.Close()
		}
	}()
	c := dial(r, "vm1", func() (net.Conn, error) { return net.DialTimeout("tcp4", "203.0.113.1:7", 5*time.Second) })
	defer c.Close()
	talk := func() error {
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
			return fmt.Errorf("got %q: %w", got, err)
		}
		return nil
	}
	if err := talk(); err != nil {
		t.Fatal(err)
	}
	r.fail("h1")
	if err := talk(); err != nil {
		t.Fatalf("after the take-over: %v", err)
	}
	r.await(5*time.Second, "gateway on h2", hosts("h1:dead h2:active"))
	r.recover("h1")
	r.await(20*time.Second, "h1 back", hosts("h1:ready h2:active"))
	if err := talk(); err != nil {
		t.Fatalf("after the return: %v", err)
	}
}
