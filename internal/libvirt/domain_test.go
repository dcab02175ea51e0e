package libvirt

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

func mac(s string) overlay.MAC {
	m, err := overlay.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// live is what libvirt 9.0 prints of running guests, shortened.
const live = `<domain type='qemu' id='3'>
  <name>web1</name>
  <uuid>7f3c0c5e-0000-4000-8000-000000000005</uuid>
  <metadata>
    <culvert:ports xmlns:culvert="urn:culvert:port:1">
      <culvert:port mac="52:54:00:00:01:06" tenant="acme" name="db"/>
      <culvert:port mac="52:54:00:00:01:07" name="store"/>
    </culvert:ports>
    <other:port xmlns:other="https://example.org/1" mac="52:54:00:00:01:05" name="nothing-of-ours"/>
  </metadata>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='bridge'>
      <mac address='52:54:00:00:01:05'/>
      <source network='blue' portgroup='web' portid='8f6a' bridge='cvb10001'/>
      <target dev='vnet3'/>
      <model type='virtio'/>
      <alias name='ua-acme_web'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:00:01:06'/>
      <source bridge='cvb10002'/>
      <target dev='vnet4'/>
      <link state='down'/>
      <alias name='net1'/>
    </interface>
    <interface type='direct'>
      <mac address='52:54:00:00:01:07'/>
      <source dev='cvm0' mode='private'/>
      <target dev='macvtap0'/>
      <alias name='ua-elsewhere_x'/>
    </interface>
    <interface type='ethernet'>
      <mac address='52:54:00:00:01:08'/>
      <target dev='ovl-pre' managed='no'/>
      <alias name='ua-7f3c0c5e-0000-4000-8000-000000000005'/>
    </interface>
    <interface type='network'>
      <mac address='52:54:00:00:01:09'/>
      <source network='blue'/>
      <alias name='ua-web2'/>
    </interface>
    <interface type='user'><mac address='52:54:00:00:01:0a'/></interface>
    <interface type='hostdev'><mac address='52:54:00:00:01:0b'/></interface>
  </devices>
</domain>`

func TestReadDomain(t *testing.T) {
	got, err := ReadDomain(strings.NewReader(live))
	if err != nil {
		t.Fatal(err)
	}
	want := Domain{Name: "web1", NICs: []hoststate.NIC{
		{Device: "vnet3", MAC: mac("52:54:00:00:01:05"), Bridge: "cvb10001", Network: "blue/web", Tenant: "acme", Port: "web", VM: "web1"},
		{Device: "vnet4", MAC: mac("52:54:00:00:01:06"), Bridge: "cvb10002", Tenant: "acme", Port: "db", VM: "web1", Unplugged: true},
		{Device: "macvtap0", MAC: mac("52:54:00:00:01:07"), Over: "cvm0", Mode: "private", Port: "store", VM: "web1"},
		{Device: "ovl-pre", MAC: mac("52:54:00:00:01:08"), VM: "web1"},
		{MAC: mac("52:54:00:00:01:09"), Network: "blue", Port: "web2", VM: "web1"},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func nicXML(inside string) string {
	return "<domain><name>g</name><devices><interface type='bridge'><mac address='52:54:00:00:01:05'/>" + inside + "</interface></devices></domain>"
}

func TestReadDomainHostile(t *testing.T) {
	plain := hoststate.NIC{MAC: mac("52:54:00:00:01:05"), VM: "g"}
	for _, inside := range []string{
		"", "<target dev='../../etc'/>", "<target dev='a name'/>", "<target dev='sixteen-letters-'/>", "<target dev='x&#10;y'/>", "<source bridge='.'/>",
		"<alias name='ua-'/>", "<alias name='ua-Acme_web'/>", "<alias name='ua-acme_web_x'/>", "<alias name='ua-acme.web'/>", "<alias name='net0'/>",
		"<alias name='ua-7f3c0c5e-0000-4000-8000-000000000005'/>", "<mac address='01:00:5e:00:00:01'/>", "<mac address='x'/>",
		"<driver><target dev='vnet9'/></driver>", "<x:target xmlns:x='urn:x' dev='vnet9'/>", "<source network='&#x2028;'/>", "<source dev='eth0' mode='vepa'/>",
	} {
		got, err := ReadDomain(strings.NewReader(nicXML(inside)))
		if err != nil || len(got.NICs) != 1 || got.NICs[0] != plain {
			t.Errorf("%s: %+v, %v", inside, got.NICs, err)
		}
	}
	for _, bad := range []string{
		"", "<domain>", "<network><name>x</name></network>", "x", "<domain/><domain/>", nicXML("<a>"), nicXML("<source network='&#27;'/>"), "<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>",
		"<domain><name>" + strings.Repeat("x", maxXML) + "</name></domain>",
	} {
		if got, err := ReadDomain(strings.NewReader(bad)); err == nil {
			t.Errorf("%.80q was taken: %+v", bad, got)
		}
	}
	many := "<domain><devices>" + strings.Repeat("<interface type='bridge'><mac address='52:54:00:00:01:05'/></interface>", 2*maxNICs) + "</devices></domain>"
	if got, err := ReadDomain(strings.NewReader(many)); err != nil || len(got.NICs) != maxNICs {
		t.Errorf("%d interfaces, %v", len(got.NICs), err)
	}
	long := "<domain><name>" + strings.Repeat("ä", 200) + "</name><devices><interface type='bridge'><mac address='52:54:00:00:01:05'/></interface></devices></domain>"
	if got, err := ReadDomain(strings.NewReader(long)); err != nil || got.Name != strings.Repeat("ä", maxText/2) {
		t.Errorf("%q, %v", got.Name, err)
	}
}

// describe writes a domain as libvirt would, for what ReadDomain reads.
func describe(d Domain) string {
	var b bytes.Buffer
	esc := func(s string) string {
		var e bytes.Buffer
		_ = xml.EscapeText(&e, []byte(s))
		return e.String()
	}
	fmt.Fprintf(&b, "<domain><name>%s</name><metadata><p:ports xmlns:p='%s'>", esc(d.Name), PortNamespace)
	for _, n := range d.NICs {
		if n.Port != "" {
			fmt.Fprintf(&b, "<p:port mac='%s' tenant='%s' name='%s'/>", n.MAC, n.Tenant, n.Port)
		}
	}
	b.WriteString("</p:ports></metadata><devices>")
	for _, n := range d.NICs {
		kind := "bridge"
		if n.Over != "" || n.Mode != "" {
			kind = "direct"
		}
		network, group, _ := strings.Cut(n.Network, "/")
		fmt.Fprintf(&b, "<interface type='%s'><mac address='%s'/><source network='%s' portgroup='%s' bridge='%s' dev='%s' mode='%s'/><target dev='%s'/>",
			kind, n.MAC, esc(network), esc(group), esc(n.Bridge), esc(n.Over), esc(n.Mode), esc(n.Device))
		if n.Unplugged {
			b.WriteString("<link state='down'/>")
		}
		b.WriteString("</interface>")
	}
	b.WriteString("</devices></domain>")
	return b.String()
}

// FuzzReadDomain: whatever a description says, what is read of it has the form
// of what it stands for, and written down again it reads the same.
func FuzzReadDomain(f *testing.F) {
	f.Add(live)
	f.Add(nicXML("<target dev='vnet0'/><source bridge='cvb1' network='a/b'/><alias name='ua-a_b'/>"))
	f.Add("<domain><name>a</name><metadata><port xmlns='urn:culvert:port:1' mac='52:54:00:00:01:05' name='x'/></metadata></domain>")
	printable := func(s string) bool {
		return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ReadDomain(strings.NewReader(s))
		if err != nil {
			return
		}
		if len(d.NICs) > maxNICs || !printable(d.Name) {
			t.Fatalf("%d interfaces of %q", len(d.NICs), d.Name)
		}
		twice := map[overlay.MAC]bool{}
		comparable := true
		for _, n := range d.NICs {
			if !n.MAC.IsUnicast() || n.VM != d.Name || n.State != 0 || !printable(n.Network) || !printable(n.Mode) {
				t.Fatalf("%+v", n)
			}
			for _, dev := range []string{n.Device, n.Bridge, n.Over} {
				if !printable(dev) || len(dev) > 15 || strings.ContainsAny(dev, "/: ") || dev == "." || dev == ".." {
					t.Fatalf("device %q", dev)
				}
			}
			if n.Port != "" && overlay.CheckName("", n.Port) != nil || n.Tenant != "" && overlay.CheckName("", n.Tenant) != nil || n.Port == "" && n.Tenant != "" {
				t.Fatalf("port %q of %q", n.Port, n.Tenant)
			}
			// The form that is written keys names by MAC, and cuts a network's at its first slash.
			comparable = comparable && !twice[n.MAC] && !strings.HasPrefix(n.Network, "/") && !strings.HasSuffix(n.Network, "/")
			twice[n.MAC] = true
		}
		if !comparable {
			return
		}
		again, err := ReadDomain(strings.NewReader(describe(d)))
		if err != nil {
			t.Fatalf("%v in %s", err, describe(d))
		}
		if diff := cmp.Diff(d, again); diff != "" {
			t.Fatalf("%s\n%s", diff, describe(d))
		}
	})
}
