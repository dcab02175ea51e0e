package libvirt

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// PortNamespace is the XML namespace of <port mac= tenant= name=/> in a
// domain's <metadata>. libvirt keeps one top element a namespace, so that a
// domain with several ports puts them into one element of any name in it.
const PortNamespace = "urn:culvert:port:1"

// Bounds of a domain's description. libvirt itself ends a string at 4 MiB
// (REMOTE_STRING_MAX), and a QEMU guest has far fewer interfaces.
const (
	maxXML    = 4 << 20 // bytes
	maxNICs   = 256
	maxText   = 128 // bytes of a name that is for people only
	maxDevice = 15  // bytes: IFNAMSIZ less the closing zero (linux/if.h)
)

var errNoDomain = errors.New("no domain element")

// Domain is a guest as libvirt describes it.
type Domain struct {
	Name string
	// NICs are its interfaces that are devices of this host, in the order of
	// the description. State is zero: a description does not tell it.
	NICs []hoststate.NIC
}

// names are what <metadata> says of a MAC.
type names struct{ tenant, port string }

// ReadDomain reads a domain's XML. Interfaces of kinds that are no device of
// this host (user, hostdev, vhostuser) and such without a usable MAC are left
// out; names that are no names are left out of theirs. What the text says
// comes from whoever may define domains, so that nothing in it is believed
// beyond its form.
func ReadDomain(r io.Reader) (Domain, error) {
	p := reader{dec: xml.NewDecoder(io.LimitReader(r, maxXML)), meta: map[overlay.MAC]names{}}
	for {
		tok, err := p.dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Domain{}, fmt.Errorf("read domain: %w", err)
		}
		if err := p.take(tok); err != nil {
			return Domain{}, err
		}
	}
	if !p.seen {
		return Domain{}, errNoDomain
	}
	for i := range p.dom.NICs {
		n := &p.dom.NICs[i]
		n.VM = p.dom.Name
		// Metadata is written for us alone; an alias may have been another's idea.
		if m, ok := p.meta[n.MAC]; ok {
			n.Tenant, n.Port = m.tenant, m.port
		}
	}
	return p.dom, nil
}

// reader walks the text once. It keeps the way to where it is, elements of
// other namespaces under a name that no element of libvirt's has, and the
// interface that it is in.
type reader struct {
	dec  *xml.Decoder
	path []string
	seen bool // the domain element
	name strings.Builder
	dom  Domain
	nic  hoststate.NIC
	kind string
	meta map[overlay.MAC]names
}

func (p *reader) take(tok xml.Token) error {
	switch t := tok.(type) {
	case xml.StartElement:
		if len(p.path) == 0 && (t.Name.Local != "domain" || p.seen) {
			return errNoDomain
		}
		p.path = append(p.path, strings.TrimPrefix(t.Name.Space+" "+t.Name.Local, " "))
		p.begin(t)
	case xml.CharData:
		if p.at("domain", "name") && p.name.Len() < 4*maxText {
			p.name.Write(t)
		}
	case xml.EndElement:
		p.end()
		p.path = p.path[:len(p.path)-1]
	}
	return nil
}

func (p *reader) at(path ...string) bool { return slices.Equal(p.path, path) }

func (p *reader) begin(t xml.StartElement) {
	switch {
	case len(p.path) == 1:
		p.seen = true
	case t.Name.Space == PortNamespace && t.Name.Local == "port" && len(p.path) > 2 && p.path[1] == "metadata":
		p.metadata(t)
	case p.at("domain", "devices", "interface"):
		p.nic, p.kind = hoststate.NIC{}, attr(t, "type")
	case len(p.path) == 4 && p.path[1] == "devices" && p.path[2] == "interface" && t.Name.Space == "":
		p.interfaceChild(t)
	}
}

// interfaceChild takes what an interface says of itself. A running guest's
// interface in a libvirt network is described as of type bridge or direct,
// with the network's name beside the bridge that it was resolved to.
func (p *reader) interfaceChild(t xml.StartElement) {
	switch t.Name.Local {
	case "mac":
		if m, err := overlay.ParseMAC(attr(t, "address")); err == nil && m.IsUnicast() {
			p.nic.MAC = m
		}
	case "source":
		p.nic.Bridge = device(attr(t, "bridge"))
		p.nic.Over, p.nic.Mode = device(attr(t, "dev")), text(attr(t, "mode"))
		if p.nic.Network = text(attr(t, "network")); p.nic.Network != "" && attr(t, "portgroup") != "" {
			p.nic.Network = text(p.nic.Network + "/" + attr(t, "portgroup"))
		}
	case "target":
		p.nic.Device = device(attr(t, "dev"))
	case "link":
		p.nic.Unplugged = attr(t, "state") == "down"
	case "alias":
		p.nic.Tenant, p.nic.Port = parseAlias(attr(t, "name"))
	}
}

func (p *reader) end() {
	switch {
	case p.at("domain", "name"):
		p.dom.Name = text(p.name.String())
	case p.at("domain", "devices", "interface"):
		if p.kind != "direct" {
			p.nic.Over, p.nic.Mode = "", ""
		}
		kinds := []string{"bridge", "network", "ethernet", "direct"}
		if slices.Contains(kinds, p.kind) && !p.nic.MAC.IsZero() && len(p.dom.NICs) < maxNICs {
			p.dom.NICs = append(p.dom.NICs, p.nic)
		}
	}
}

// metadata takes a port element. One that says half of it wrongly says nothing.
func (p *reader) metadata(t xml.StartElement) {
	mac, err := overlay.ParseMAC(attr(t, "mac"))
	n := names{attr(t, "tenant"), attr(t, "name")}
	if err != nil || overlay.CheckName("name", n.port) != nil || n.tenant != "" && overlay.CheckName("tenant", n.tenant) != nil || len(p.meta) >= maxNICs {
		return
	}
	p.meta[mac] = n
}

// AliasPrefix is how libvirt knows an alias that a user gave.
const AliasPrefix = "ua-"

// parseAlias reads a NIC's alias: ua-TENANT_PORT, or ua-PORT for the tenant of
// the network that the NIC is in. Any other alias names no port. The separator
// cannot be a dot or a slash: libvirt drops an alias with any character beside
// letters, digits, hyphen and underscore without a word; and names have no
// underscore. A UUID is not taken for a name: other software gives such
// aliases to every device of its guests.
func parseAlias(s string) (tenant, port string) {
	rest, ok := strings.CutPrefix(s, AliasPrefix)
	if !ok {
		return "", ""
	}
	tenant, port, ok = strings.Cut(rest, "_")
	if !ok {
		tenant, port = "", rest
	} else if overlay.CheckName("tenant", tenant) != nil {
		return "", ""
	}
	if overlay.CheckName("port", port) != nil || isUUID(port) {
		return "", ""
	}
	return tenant, port
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range s {
		if hyphen := i == 8 || i == 13 || i == 18 || i == 23; hyphen != (c == '-') {
			return false
		}
		if c != '-' && !strings.ContainsRune("0123456789abcdef", c) {
			return false
		}
	}
	return true
}

func attr(t xml.StartElement, name string) string {
	for _, a := range t.Attr {
		if a.Name.Local == name && a.Name.Space == "" {
			return a.Value
		}
	}
	return ""
}

// device is the name of a network device, or empty if s cannot be one
// (net/core/dev.c, dev_valid_name).
func device(s string) string {
	if s == "" || len(s) > maxDevice || s == "." || s == ".." || text(s) != s || strings.ContainsAny(s, "/: ") {
		return ""
	}
	return s
}

// text is a name for people: short and printable.
func text(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") // the cut may be within a character
	}
	return s
}
