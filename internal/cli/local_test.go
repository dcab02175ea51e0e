package cli

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/api/rpcerr"
	"culvert/internal/apiserver"
	"culvert/internal/apiserver/apiservertest"
)

// fakeAgent has one port, default/vm1, and one device.
type fakeAgent struct {
	culvertv1connect.LocalHandler
	attached string
}

func (a *fakeAgent) AttachPort(_ context.Context, r *culvertv1.AttachPortRequest) (*culvertv1.AttachPortResponse, error) {
	if r.GetTenant() != "default" || r.GetPort() != "vm1" {
		return nil, rpcerr.Encode(api.Refuse(api.CodeNotFound, "device "+r.GetDevice()+" was not attached", "there is no port "+r.GetTenant()+"/"+r.GetPort(), "see what there is: culvert port list"))
	}
	action := "attached"
	if a.attached == r.GetDevice() {
		action = "unchanged"
	}
	a.attached = r.GetDevice()
	return &culvertv1.AttachPortResponse{Action: action, Network: "blue", Bridge: "cvb10001", Mac: "52:54:00:00:00:01", Addresses: []string{"10.20.0.2"}}, nil
}

func (a *fakeAgent) DetachPort(context.Context, *culvertv1.DetachPortRequest) (*culvertv1.DetachPortResponse, error) {
	if a.attached == "" {
		return &culvertv1.DetachPortResponse{Action: "unchanged"}, nil
	}
	dev := a.attached
	a.attached = ""
	return &culvertv1.DetachPortResponse{Action: "detached", Device: dev}, nil
}

func (a *fakeAgent) Prepare(_ context.Context, r *culvertv1.PrepareRequest) (*culvertv1.PrepareResponse, error) {
	if r.GetMac() != "52:54:00:00:00:01" || r.GetBridge() != "cvb10001" || r.GetVm() != "web" || !r.GetIncoming() {
		return nil, rpcerr.Encode(api.Refuse(api.CodeGuest, "guest "+r.GetVm()+" was not let in", "no port has MAC "+r.GetMac(), ""))
	}
	return &culvertv1.PrepareResponse{Ours: true}, nil
}

func TestAttach(t *testing.T) {
	dir, err := os.MkdirTemp("", "cv")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "a.sock")
	l, err := apiserver.Socket(sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := connect.NewServer()
	culvertv1connect.RegisterLocalHandler(srv, &fakeAgent{})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, srv)
	apiservertest.ServeOn(t, l, mux)
	m := newMachine(t)
	at := " --agent-socket " + sock
	m.want("attach vm1 --dev tap0"+at, 0, "port vm1 attached: device tap0 in cvb10001, network blue, 10.20.0.2, 52:54:00:00:00:01\n", "")
	m.want("attach vm1 --dev tap0"+at, 0, "port vm1 unchanged: device tap0 in cvb10001, network blue, 10.20.0.2, 52:54:00:00:00:01\n", "")
	m.want("attach acme/vm1 --dev tap0"+at, 7, "", `
Device tap0 was not attached: there is no port acme/vm1.
See what there is:  culvert port list
(CV0110)
`)
	m.want("detach vm1 -o json"+at, 0, `
{
  "apiVersion": "culvert/v1alpha1",
  "kind": "Attachment",
  "action": "detached",
  "port": "vm1",
  "device": "tap0"
}
`, "")
	m.want("detach vm1"+at, 0, "port vm1 unchanged\n", "")

	// What libvirt's hook asks: stdout stays empty, for libvirt would take it for
	// another description of the guest.
	m.stdin = "<domain><name>web</name><devices><interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='cvb10001'/></interface></devices></domain>"
	m.want("libvirt hook"+at+" -- web migrate begin -", 0, "", "")
	m.want("libvirt hook"+at+" -- web prepare begin -", 5, "", `
Guest web was not let in: no port has MAC 52:54:00:00:00:01.
Compare it with the port:  culvert port list
(CV0032)
`)
	m.want("libvirt hook"+at+" -- web stopped end -", 0, "", "")
}

func TestHooks(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "qemu.d", "50-culvert")
	out := m.ok("libvirt install-hooks --dir " + dir)
	if out != "hook written "+script+"\n" && out != "hook written "+filepath.Join(dir, "qemu")+"\n" { // before libvirt 6.5
		t.Errorf("%q", out)
	}
	if out := m.ok("libvirt install-hooks -o json --dir " + dir); !strings.Contains(out, `"action": "unchanged"`) {
		t.Errorf("%q", out)
	}
	if out := m.ok("libvirt remove-hooks --dir " + dir); !strings.HasPrefix(out, "hook removed "+dir) {
		t.Errorf("%q", out)
	}
	m.want("libvirt remove-hooks --dir "+dir, 0, "hook unchanged\n", "")
	for _, path := range []string{script, filepath.Join(dir, "qemu")} {
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, e, code := m.run("libvirt install-hooks --dir " + dir); code != 5 || !strings.Contains(e, "is there and is not culvert's") {
		t.Errorf("exit code %d: %s", code, e)
	}
}

func TestSchemaText(t *testing.T) {
	m := newMachine(t)
	got := m.ok("schema port")
	for _, want := range []string{"FIELD ", "spec.network ", "network of the same tenant", "spec.addresses[] ", "status.traffic.receivedBytes ", "written by the server", "\nExample:\napiVersion: culvert/v1alpha1\nkind: Port\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	// The example is a document.
	_, example, _ := strings.Cut(m.ok("schema network"), "Example:\n")
	m.stdin = example
	m.ok("apply -f -")
	if s := m.ok("schema port -o json"); !strings.Contains(s, `"additionalProperties": false`) {
		t.Errorf("no JSON Schema:\n%s", s)
	}
}

// TestDaemons: flags reach the functions that main passes in, and their errors
// have four parts and an exit code.
func TestDaemons(t *testing.T) {
	var out, e bytes.Buffer
	var got []any
	var fail error
	env := &Env{Stdout: &out, Stderr: &e, Getenv: func(string) string { return "" },
		RunManager: func(_ context.Context, o ManagerOptions) error { got = append(got, o); return fail },
		RunAgent:   func(_ context.Context, o AgentOptions) error { got = append(got, o); return fail },
		Init:       func(_ context.Context, o InitOptions) error { got = append(got, o); return fail },
		Join:       func(_ context.Context, o JoinOptions) error { got = append(got, o); return fail }}
	for _, line := range []string{"manager run --dir /d --listen 192.0.2.1:1 --socket /s --host-death 2s", "agent run --vtep 192.0.2.1", "init --no-start", "join TOKEN --host h"} {
		if code := Main(t.Context(), env, strings.Fields(line)); code != 0 {
			t.Errorf("culvert %s: exit code %d", line, code)
		}
	}
	want := []any{ManagerOptions{Dir: "/d", Listen: "192.0.2.1:1", Socket: "/s", HostDeath: 2 * time.Second}, "192.0.2.1", true, "TOKEN h"}
	if len(got) != 4 || got[0] != want[0] || got[1].(AgentOptions).VTEP[0] != want[1] || got[2].(InitOptions).NoStart != want[2] ||
		got[3].(JoinOptions).Token+" "+got[3].(JoinOptions).Host != want[3] {
		t.Errorf("options %+v", got)
	}
	for _, v := range []string{"1ms", "2h", "-1s"} {
		if code := Main(t.Context(), env, []string{"manager", "run", "--host-death", v}); code == 0 || !strings.Contains(e.String(), "--host-death is") {
			t.Errorf("--host-death %s: exit code %d\n%s", v, code, e.String())
		}
		e.Reset()
	}
	if Main(t.Context(), env, []string{"manager", "run", "--host-death", "0"}) != 0 {
		t.Errorf("--host-death 0 is refused: %s", e.String())
	}
	fail = errors.New("listen: address already in use")
	if code := Main(t.Context(), env, []string{"manager", "run"}); code != 1 || !strings.HasPrefix(e.String(), "The command was not finished: listen: address already in use.\n") {
		t.Errorf("exit code %d\n%s", code, e.String())
	}
	fail = api.Refuse(api.CodeTokenExpired, "host h did not join", "the token expired at noon", "")
	if code := Main(t.Context(), env, []string{"join", "T"}); code != 6 {
		t.Errorf("exit code %d", code)
	}
}
