package packet

// Drop says why a frame yields no fact. The zero value, Taken, means that it
// does. One table below gives each its name, so that counters and documents
// follow from it.
type Drop uint8

// The reasons, from the outside of a frame to its inside.
const (
	Taken Drop = iota
	Other
	Cut
	EthShort
	EthSource
	VLANTagged
	ARPShort
	ARPHardware
	ARPOperation
	ARPMACMismatch
	ARPAddress
	IPv4Short
	IPv4Header
	IPv4Checksum
	IPv4Fragment
	IPv6Short
	IPv6Header
	IPv6Fragment
	RouteAddress
	UDPLength
	UDPChecksum
	NDShort
	NDHopLimit
	NDChecksum
	NDCode
	NDSource
	NDTarget
	NDOption
	NDMACMismatch
	IGMPShort
	IGMPTTL
	IGMPChecksum
	IGMPType
	IGMPGroup
	MLDShort
	MLDHopLimit
	MLDChecksum
	MLDSource
	MLDRouterAlert
	MLDGroup
	DHCPShort
	DHCPHardware
	DHCPMagic
	DHCPOption
	DHCPType
	DHCPDirection
	DHCPRelay
	DHCPMACMismatch
	DHCPAddress
	DHCPNoLease
	DHCP6Short
	DHCP6Option
	DHCP6Type
	DHCP6Direction
	DHCP6Relay
	DHCP6Address
	DHCP6Many

	// Drops is how many values there are: counters are arrays of it.
	Drops = int(DHCP6Many) + 1
)

// dropTable is the one list of names and meanings.
var dropTable = [Drops]struct{ name, why string }{
	Taken:           {"taken", "a fact was read"},
	Other:           {"other", "another kind of message than was asked for; Parse never says this"},
	Cut:             {"cut", "what matters lies behind the bytes that were kept"},
	EthShort:        {"eth-short", "fewer than 14 bytes"},
	EthSource:       {"eth-source", "source address is a group or zero (IEEE 802.3 3.2.3)"},
	VLANTagged:      {"vlan-tagged", "802.1Q, 802.1ad or their older numbers: networks are not divided by tags"},
	ARPShort:        {"arp-short", "fewer than 28 bytes of ARP"},
	ARPHardware:     {"arp-hardware", "not IPv4 over Ethernet (RFC 826)"},
	ARPOperation:    {"arp-operation", "neither request nor reply, or a RARP that is no announcement"},
	ARPMACMismatch:  {"arp-mac-mismatch", "Ethernet source differs from the sender's hardware address"},
	ARPAddress:      {"arp-address", "an address that no interface can have"},
	IPv4Short:       {"ipv4-short", "header or total length beyond the frame"},
	IPv4Header:      {"ipv4-header", "version, header length or total length is impossible (RFC 791)"},
	IPv4Checksum:    {"ipv4-checksum", "header checksum is wrong"},
	IPv4Fragment:    {"ipv4-fragment", "a fragment of UDP or IGMP"},
	IPv6Short:       {"ipv6-short", "header or payload length beyond the frame"},
	IPv6Header:      {"ipv6-header", "version wrong, extension header broken or out of place, or more than 8 of them (RFC 8200)"},
	IPv6Fragment:    {"ipv6-fragment", "a fragment; neighbour discovery never is one (RFC 6980)"},
	RouteAddress:    {"route-address", "to the router, from or to an address that no interface can have"},
	UDPLength:       {"udp-length", "length below 8 or beyond the packet (RFC 768)"},
	UDPChecksum:     {"udp-checksum", "checksum is wrong, or missing in IPv6"},
	NDShort:         {"nd-short", "message shorter than its fixed part (RFC 4861 section 4)"},
	NDHopLimit:      {"nd-hop-limit", "hop limit is not 255 (RFC 4861 section 7.1)"},
	NDChecksum:      {"nd-checksum", "ICMPv6 checksum is wrong"},
	NDCode:          {"nd-code", "ICMPv6 code is not 0"},
	NDSource:        {"nd-source", "IPv6 source or destination does not fit the message (RFC 4861 sections 6.1, 7.1)"},
	NDTarget:        {"nd-target", "target that no interface can have"},
	NDOption:        {"nd-option", "option of length 0, beyond the message, or not of Ethernet (RFC 4861 section 4.6)"},
	NDMACMismatch:   {"nd-mac-mismatch", "Ethernet source differs from the link-layer address option"},
	IGMPShort:       {"igmp-short", "message shorter than its fixed part or its records"},
	IGMPTTL:         {"igmp-ttl", "TTL is not 1 (RFC 3376 section 4)"},
	IGMPChecksum:    {"igmp-checksum", "checksum is wrong"},
	IGMPType:        {"igmp-type", "neither query, report nor leave"},
	IGMPGroup:       {"igmp-group", "group that is no multicast address"},
	MLDShort:        {"mld-short", "message shorter than its fixed part or its records"},
	MLDHopLimit:     {"mld-hop-limit", "hop limit is not 1 (RFC 3810 section 6.2)"},
	MLDChecksum:     {"mld-checksum", "ICMPv6 checksum is wrong"},
	MLDSource:       {"mld-source", "source neither link-local nor, of a report, unspecified (RFC 3810 section 5.2.13)"},
	MLDRouterAlert:  {"mld-router-alert", "no router alert for MLD (RFC 2711, RFC 3810 section 6.2)"},
	MLDGroup:        {"mld-group", "group that is no multicast address"},
	DHCPShort:       {"dhcp-short", "fewer than 240 bytes (RFC 2131 section 2)"},
	DHCPHardware:    {"dhcp-hardware", "not Ethernet"},
	DHCPMagic:       {"dhcp-magic", "no magic cookie: BOOTP (RFC 951) or worse"},
	DHCPOption:      {"dhcp-option", "option beyond the message, of a wrong length, or given twice"},
	DHCPType:        {"dhcp-type", "message type missing, unknown, or not of the sender's role"},
	DHCPDirection:   {"dhcp-direction", "a server's message from a guest, or a client's towards one"},
	DHCPRelay:       {"dhcp-relay", "a guest that says it is a relay agent"},
	DHCPMACMismatch: {"dhcp-mac-mismatch", "Ethernet address differs from the client's hardware address"},
	DHCPAddress:     {"dhcp-address", "an address that no interface can have"},
	DHCPNoLease:     {"dhcp-no-lease", "offer or acknowledgement of an address without a lease time or server"},
	DHCP6Short:      {"dhcp6-short", "fewer than 4 bytes (RFC 8415 section 8)"},
	DHCP6Option:     {"dhcp6-option", "option beyond its place or of a wrong length"},
	DHCP6Type:       {"dhcp6-type", "message type unknown or not of the sender's role"},
	DHCP6Direction:  {"dhcp6-direction", "a server's message from a guest, or a client's towards one"},
	DHCP6Relay:      {"dhcp6-relay", "relay message"},
	DHCP6Address:    {"dhcp6-address", "an address that no interface can have, or a reply to a group"},
	DHCP6Many:       {"dhcp6-many", "more than 4 associations or 8 addresses"},
}

// String is the name for counters: lower case and hyphens.
func (d Drop) String() string {
	if int(d) < Drops {
		return dropTable[d].name
	}
	return "unknown"
}

// Why is one line for people; empty for a value that is none of the above.
func (d Drop) Why() string {
	if int(d) < Drops {
		return dropTable[d].why
	}
	return ""
}
