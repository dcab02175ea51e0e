// What the port programs want to know of a frame.
#ifndef FRAME_H
#define FRAME_H

#include "culvert.h"

#define ND_ROUTER_ADVERT 134
#define ND_SOLICIT 135
#define ND_ADVERT 136

// Extension headers (RFC 8200 section 4) that are looked through.
#define MAX_EXTENSIONS 8
#define PROTO_ICMPV6 58
#define NEXT_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AUTH 51
#define NEXT_DEST 60
#define NO_PROTO 255

struct facts {
	__u8 mac_dst[ETH_ALEN] ALIGNED, mac_src[ETH_ALEN] ALIGNED;
	__u8 arp_mac[ETH_ALEN] ALIGNED; // ARP's sender
	__u16 type;             // EtherType behind VLAN tags
	__u32 l3;               // offset of what follows it
	__u32 l4;               // of what follows the IP header, where proto says what
	struct in6 src;         // of IP, or ARP's sender protocol address
	struct in6 target;      // of neighbour discovery
	__u16 sport, dport;     // UDP
	__u8 proto;             // of IP; NO_PROTO in a later fragment
	__u8 icmp;              // ICMPv6 type
	bool unknown;           // more extension headers than are looked through
};

// walk is where the search through the headers of an IPv6 packet stands.
struct walk {
	__u32 at; // offset of the next header from the packet's beginning
	__u8 proto;
	bool first_fragment, later_fragment, cut, unknown;
};

// same_mac compares addresses that stand on a boundary of four bytes.
static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return *(const __u32 *)a == *(const __u32 *)b && *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

static __always_inline bool same_ip(const struct in6 *a, const struct in6 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

// load copies len bytes of a frame, a constant, to an object on a boundary of
// four bytes. False: the frame ends before. Where the bytes lie in one piece, as
// headers nearly always do, it takes no call.
static __always_inline bool load(struct __sk_buff *skb, __u32 at, void *to, __u32 len)
{
	const void *from = (void *)(long)skb->data + at;

	if (from + len > (void *)(long)skb->data_end)
		return !bpf_skb_load_bytes(skb, at, to, len);
	// Told of a boundary, clang copies by words; the kernel allows it wherever the
	// processor does.
	if (len % 4 == 0)
		__builtin_memcpy(__builtin_assume_aligned(to, 4), __builtin_assume_aligned(from, 4), len);
	else if (len % 2 == 0)
		__builtin_memcpy(__builtin_assume_aligned(to, 2), __builtin_assume_aligned(from, 2), len);
	else
		__builtin_memcpy(to, from, len);
	return true;
}

// is_router knows the router's address on a boundary of two bytes.
static __always_inline bool is_router(const __u8 *mac)
{
	const __be16 *m = (const __be16 *)mac;

	return m[0] == ROUTER_MAC0 && m[1] == ROUTER_MAC1 && m[2] == ROUTER_MAC2;
}

static __always_inline bool is_broadcast(const __u8 *mac)
{
	return *(const __u32 *)mac == 0xffffffff && *(const __u16 *)(mac + 4) == 0xffff;
}

static __always_inline void mapped4(struct in6 *to, const __u8 *ip)
{
	// Word by word: an initializer would become a map of constants, which a
	// later version's program would take over with everything else.
	volatile __u32 *w = (volatile __u32 *)to;

	w[0] = 0;
	w[1] = 0;
	w[2] = bpf_htonl(0xffff);
	__builtin_memcpy(&to->b[12], ip, 4);
}

static __always_inline bool is_any4(const struct in6 *a)
{
	return !(a->b[12] | a->b[13] | a->b[14] | a->b[15]);
}

static __always_inline bool is_any6(const struct in6 *a)
{
	const __u32 *w = (const __u32 *)a;

	return !(w[0] | w[1] | w[2] | w[3]);
}

static __always_inline bool is_mapped(const struct in6 *a)
{
	const __u32 *w = (const __u32 *)a;

	return !(w[0] | w[1]) && w[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_linklocal(const struct in6 *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

static __always_inline bool is_extension(__u32 proto)
{
	return proto == NEXT_HOP || proto == NEXT_ROUTING || proto == NEXT_FRAGMENT || proto == NEXT_AUTH || proto == NEXT_DEST;
}

// What walk_extensions returns: where it ended, 40 and more, beside these.
enum { AT = 0x7fff, FIRST_FRAGMENT = 1 << 16, LATER_FRAGMENT = 1 << 17, CUT = 1 << 18, UNKNOWN = 1 << 19, PROTO_SHIFT = 24 };

// walk_extensions is a function of its own, and global, so that the verifier
// looks at it once and not again for every way that leads to it.
__noinline __u32 walk_extensions(struct __sk_buff *skb, __u32 base, __u32 proto, __u32 start)
{
	__u32 at = 40, found = 0;
	__u8 h[4] ALIGNED;

	for (int i = 0; i < MAX_EXTENSIONS && is_extension(proto); i++) {
		if (bpf_skb_load_bytes_relative(skb, base + at, h, sizeof(h), start))
			return at | found | proto << PROTO_SHIFT | CUT;
		if (proto == NEXT_FRAGMENT) {
			if ((h[2] << 8 | h[3]) & 0xfff8)
				return at | found | proto << PROTO_SHIFT | LATER_FRAGMENT;
			if (h[3] & 1)
				found |= FIRST_FRAGMENT;
			at += 8;
		} else if (proto == NEXT_AUTH) {
			at += (h[1] + 2) * 4; // RFC 4302 section 2.2
		} else {
			at += (h[1] + 1) * 8;
		}
		proto = h[0];
	}
	return at | found | proto << PROTO_SHIFT | (is_extension(proto) ? UNKNOWN : 0);
}

// walk6 finds the upper layer of an IPv6 packet. base and start say from where
// offsets count; w->at is 40 at the beginning, and w->proto the next header there.
static __always_inline void walk6(struct __sk_buff *skb, __u32 base, __u32 start, struct walk *w)
{
	__u32 found;

	if (!is_extension(w->proto))
		return;
	found = walk_extensions(skb, base, w->proto, start);
	w->at = found & AT;
	w->proto = found >> PROTO_SHIFT;
	w->first_fragment = found & FIRST_FRAGMENT;
	w->later_fragment = found & LATER_FRAGMENT;
	w->cut = found & CUT;
	w->unknown = found & UNKNOWN;
}

// parse_ethernet reads addresses and type. Tags are looked through, for a
// receiver does so too where the VLAN is 0 (IEEE 802.1Q, priority tagging).
static __always_inline bool parse_ethernet(struct __sk_buff *skb, struct facts *f)
{
	struct ethhdr eth ALIGNED;
	__be16 type;

	if (!load(skb, 0, &eth, sizeof(eth)))
		return false;
	__builtin_memcpy(f->mac_dst, eth.h_dest, ETH_ALEN);
	__builtin_memcpy(f->mac_src, eth.h_source, ETH_ALEN);
	type = eth.h_proto;
	f->l3 = sizeof(eth);
	f->proto = NO_PROTO;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (type != bpf_htons(0x8100) && type != bpf_htons(0x88a8))
			break;
		if (bpf_skb_load_bytes(skb, f->l3 + 2, &type, sizeof(type)))
			return false;
		f->l3 += 4;
	}
	f->type = bpf_ntohs(type);
	return true;
}

struct arp {
	__be16 hardware, protocol;
	__u8 hlen, plen;
	__be16 op;
	__u8 sha[ETH_ALEN];
	__u8 spa[4];
	__u8 tha[ETH_ALEN];
	__u8 tpa[4];
};

// parse_udp reads the ports; all else of UDP is the receiver's.
static __always_inline bool parse_udp(struct __sk_buff *skb, struct facts *f, __u32 at)
{
	__be16 ports[2] ALIGNED;

	if (!load(skb, at, ports, sizeof(ports)))
		return false;
	f->sport = bpf_ntohs(ports[0]);
	f->dport = bpf_ntohs(ports[1]);
	return true;
}

static __always_inline bool parse4(struct __sk_buff *skb, struct facts *f)
{
	__u8 ip[20] ALIGNED;

	if (!load(skb, f->l3, ip, sizeof(ip)) || ip[0] >> 4 != 4 || (ip[0] & 15) < 5)
		return false;
	mapped4(&f->src, &ip[12]);
	if ((ip[6] << 8 | ip[7]) & 0x1fff)
		return true; // a later fragment
	f->proto = ip[9];
	f->l4 = f->l3 + (ip[0] & 15) * 4;
	return f->proto != IPPROTO_UDP || parse_udp(skb, f, f->l4);
}

static __always_inline bool parse6(struct __sk_buff *skb, struct facts *f)
{
	__u8 ip[24] ALIGNED;
	struct walk w = { .at = 40 };

	if (!load(skb, f->l3, ip, sizeof(ip)) || ip[0] >> 4 != 6)
		return false;
	__builtin_memcpy(&f->src, &ip[8], sizeof(f->src));
	w.proto = ip[6];
	walk6(skb, f->l3, BPF_HDR_START_MAC, &w);
	if (w.cut)
		return false;
	f->unknown = w.unknown;
	if (w.later_fragment || w.unknown)
		return true;
	f->proto = w.proto;
	f->l4 = f->l3 + w.at;
	if (w.proto == IPPROTO_UDP)
		return parse_udp(skb, f, f->l4);
	if (w.proto != PROTO_ICMPV6)
		return true;
	if (bpf_skb_load_bytes(skb, f->l3 + w.at, &f->icmp, 1))
		return false;
	if (f->icmp != ND_SOLICIT && f->icmp != ND_ADVERT)
		return true;
	return !bpf_skb_load_bytes(skb, f->l3 + w.at + 8, &f->target, sizeof(f->target));
}

// parse reads what follows the Ethernet header. False: cut in a header, or no
// header of what the type says.
static __always_inline bool parse(struct __sk_buff *skb, struct facts *f)
{
	struct arp a ALIGNED;

	switch (f->type) {
	case ETH_P_ARP:
		if (!load(skb, f->l3, &a, sizeof(a)))
			return false;
		__builtin_memcpy(f->arp_mac, a.sha, ETH_ALEN);
		mapped4(&f->src, a.spa);
		return true;
	case ETH_P_IP:
		return parse4(skb, f);
	case ETH_P_IPV6:
		return parse6(skb, f);
	}
	return true;
}

// worth_hearing says which frames are handed up.
static __always_inline bool worth_hearing(const struct facts *f)
{
	switch (f->type) {
	case ETH_P_ARP:
	case ETH_P_RARP:
		return true;
	case ETH_P_IP:
		return f->proto == IPPROTO_IGMP ||
		       (f->proto == IPPROTO_UDP && (f->sport == 67 || f->sport == 68 || f->dport == 67 || f->dport == 68));
	case ETH_P_IPV6:
		if (f->proto == IPPROTO_UDP)
			return f->sport == 546 || f->sport == 547 || f->dport == 546 || f->dport == 547;
		// Neighbour discovery 133 to 137; MLD 130 to 132 and 143 (RFC 3810).
		return f->proto == PROTO_ICMPV6 && ((f->icmp >= 130 && f->icmp <= 137) || f->icmp == 143);
	}
	return false;
}

#endif
