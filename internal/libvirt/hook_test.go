package libvirt

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/internal/api"
	"culvert/internal/hoststate"
)

// TestMain is also the program that hook scripts of these tests run: then the
// agent's socket is the path of a file of refused MACs.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "libvirt" && os.Args[2] == "hook" {
		f := flag.NewFlagSet("hook", flag.ExitOnError)
		answers := f.String("agent-socket", "", "")
		_ = f.Parse(os.Args[3:]) // it exits
		err := Gate(context.Background(), Call{Domain: f.Arg(0), Operation: f.Arg(1), Sub: f.Arg(2)}, os.Stdin, func(_ context.Context, n hoststate.NIC, _ bool) error {
			macs, err := os.ReadFile(*answers)
			if err == nil && strings.Contains(string(macs), n.MAC.String()) {
				return api.Refuse(api.CodeHostNotYours, "Guest "+n.VM+" was not let in", "port of "+n.MAC.String()+" is elsewhere", "")
			}
			return err
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestGate(t *testing.T) {
	three := "<domain><name>g</name><devices>" + nic("52:54:00:00:01:01", "cvb1", "ua-acme_web") + nic("52:54:00:00:01:02", "br0", "") +
		"<interface type='network'><mac address='52:54:00:00:01:03'/><source network='blue'/></interface>" + nic("52:54:00:00:01:04", "cvb01", "") + "</devices></domain>"
	no := func(c api.Code) *api.Refusal { return api.Refuse(c, "what", "why", "") }
	tests := []struct {
		name, op, sub, xml string
		answers            []*api.Refusal // in turn; the last for ever
		want               api.Code
		asked              string
		took               time.Duration
	}{
		{"ready", "prepare", "begin", three, []*api.Refusal{nil}, "", "01 03", 0},
		{"arrives", "migrate", "begin", three, []*api.Refusal{nil}, "", "01+ 03+", 0},
		{"other operations pass unread", "stopped", "end", "no XML", nil, "", "", 0},
		{"the end of one that is asked about", "start", "end", three, nil, "", "", 0},
		{"not understood", "start", "begin", "no XML", nil, api.CodeDocument, "", 0},
		{"refused at once", "start", "begin", three, []*api.Refusal{no(api.CodeGuest)}, api.CodeGuest, "01", 0},
		{"ready after a while", "start", "begin", three, []*api.Refusal{no(api.CodeNotReady), no(api.CodeUnreachable), no(api.CodeNoAgent), nil}, "", "01 01 01 01 03", 3 * askAgain},
		{"never ready", "restore", "begin", nicXML("<source bridge='cvb1'/>"), []*api.Refusal{no(api.CodeNotReady)}, api.CodeNotReady, "", 5 * time.Second},
		{"no agent, a network of ours", "prepare", "begin", nicXML("<source bridge='cvb1'/>"), []*api.Refusal{no(api.CodeNoAgent)}, api.CodeNoAgent, "", 5 * time.Second},
		{"no agent, a port of ours", "prepare", "begin", nicXML("<source network='blue'/><alias name='ua-web'/>"), []*api.Refusal{no(api.CodeNoAgent)}, api.CodeNoAgent, "", 5 * time.Second},
		{"no agent, nothing says that it is ours", "prepare", "begin", nicXML("<source network='default'/>"), []*api.Refusal{no(api.CodeNoAgent)}, "", "05", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				var asked []string
				start := time.Now()
				err := Gate(ctx, Call{"g", tt.op, tt.sub}, strings.NewReader(tt.xml), func(_ context.Context, n hoststate.NIC, incoming bool) error {
					i := min(len(asked), len(tt.answers)-1)
					name := n.MAC.String()[15:]
					if incoming {
						name += "+"
					}
					asked = append(asked, name)
					if tt.answers[i] == nil {
						return nil
					}
					return tt.answers[i]
				})
				var ref *api.Refusal
				if errors.As(err, &ref) != (tt.want != "") || ref != nil && ref.Code() != tt.want || ref == nil && err != nil {
					t.Errorf("%v, want %q", err, tt.want)
				}
				if got := strings.Join(asked, " "); tt.asked != "" && got != tt.asked {
					t.Errorf("asked %q, want %q", got, tt.asked)
				}
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
			})
		})
	}
}

func TestHooksAreInstalled(t *testing.T) {
	h := Hooks{Dir: filepath.Join(t.TempDir(), "hooks"), Program: "/opt/it's/culvert", Socket: "/run/a.sock"}
	for _, single := range []bool{false, true} {
		h.Single = single
		path, changed, err := h.Install()
		if err != nil || !changed {
			t.Fatalf("%s: %t, %v", path, changed, err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%v, %v", st, err)
		}
		if _, changed, err := h.Install(); changed || err != nil {
			t.Errorf("again: %t, %v", changed, err)
		}
		other := h
		other.Socket = "/run/b.sock"
		if _, changed, err := other.Install(); !changed || err != nil {
			t.Errorf("another socket: %t, %v", changed, err)
		}
	}
	left, err := os.ReadDir(h.Dir)
	if err != nil || len(left) != 2 {
		t.Errorf("in the folder: %v, %v", left, err)
	}
	if removed, err := h.Remove(); err != nil || len(removed) != 2 {
		t.Errorf("removed %v, %v", removed, err)
	}
	if removed, err := h.Remove(); err != nil || len(removed) != 0 {
		t.Errorf("removed %v again, %v", removed, err)
	}
}

// TestHooksOfOthersStay: a script that is not ours is neither written over nor
// removed.
func TestHooksOfOthersStay(t *testing.T) {
	for _, single := range []bool{false, true} {
		h := Hooks{Dir: t.TempDir(), Program: "/usr/bin/culvert", Socket: "/run/a.sock", Single: single}
		path := h.path()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		var ref *api.Refusal
		if _, _, err := h.Install(); !errors.As(err, &ref) || ref.Code() != api.CodeHook {
			t.Errorf("install over %s: %v", path, err)
		}
		removed, err := h.Remove()
		if len(removed) > 0 || !single && err == nil {
			t.Errorf("removed %v, %v", removed, err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "#!/bin/sh\n" {
			t.Errorf("%q, %v", text, err)
		}
	}
}

func TestSingleHook(t *testing.T) {
	for text, want := range map[string]bool{
		"libvirtd (libvirt) 9.0.0\n": false, "virtqemud (libvirt) 6.5.0": false, "libvirtd (libvirt) 6.4.0": true, "libvirtd (libvirt) 5.10.0": true, "": false, "x": false,
	} {
		if got := singleHook(text); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}
