// The source check: whose VXLAN frames a host takes.

#define AF_INET 2
#define AF_INET6 10
#define VXLAN_I 0x08 // RFC 7348 section 5

// tunnel is the UDP and VXLAN headers and the inner Ethernet header.
struct tunnel {
	__be16 udp[4];
	__u8 flags, reserved1[3], vni[3], reserved2;
	__u8 mac_dst[ETH_ALEN], mac_src[ETH_ALEN], type[2];
};

// outer is the headers outside, in one piece so that one call reads them, and
// what counts of them.
struct outer {
	__u8 ip[40] ALIGNED; // an IPv4 header without options takes the last 20
	struct tunnel t;
	bool whole;          // t is what follows a header of that length
	bool first_fragment;
	__u8 family;
	__u32 udp;           // offset from the network header
	struct in6 src;
};

#define IP4 20 // where an IPv4 header begins in outer.ip, and its length

// routed says whether this host only routes a datagram on: then it is none of
// our business. It is asked before a drop, never on the way of good frames.
static __always_inline bool routed(struct __sk_buff *skb, const struct outer *o)
{
	struct bpf_fib_lookup p = { .family = o->family, .l4_protocol = IPPROTO_UDP, .ifindex = skb->ifindex };
	long way;

	if (o->family == AF_INET) {
		__builtin_memcpy(&p.ipv4_src, &o->ip[IP4 + 12], 4);
		__builtin_memcpy(&p.ipv4_dst, &o->ip[IP4 + 16], 4);
	} else {
		__builtin_memcpy(p.ipv6_src, &o->ip[8], sizeof(o->src));
		__builtin_memcpy(p.ipv6_dst, &o->ip[24], sizeof(o->src));
	}
	way = bpf_fib_lookup(skb, &p, sizeof(p), 0);
	return way == BPF_FIB_LKUP_RET_SUCCESS || way == BPF_FIB_LKUP_RET_UNSUPP_LWT || way == BPF_FIB_LKUP_RET_NO_NEIGH ||
	       way == BPF_FIB_LKUP_RET_FRAG_NEEDED;
}

static __always_inline int refuse(struct __sk_buff *skb, const struct outer *o, __u32 reason)
{
	__u64 *n;

	if (routed(skb, o))
		return NEXT;
	n = bpf_map_lookup_elem(&cv_underdrops, &reason);
	if (n)
		(*n)++;
	return TC_ACT_SHOT;
}

// load_outer reads a network header and, unless the frame is too short for it,
// what follows. Not every device's frames have an Ethernet header, so that where
// in memory the network header is cannot be told without a call.
static __always_inline bool load_outer(struct __sk_buff *skb, struct outer *o, __u8 *ip, __u32 len)
{
	o->whole = skb->len >= ETH_HLEN + len + sizeof(o->t) &&
		   !bpf_skb_load_bytes_relative(skb, 0, ip, len + sizeof(o->t), BPF_HDR_START_NET);
	return o->whole || !bpf_skb_load_bytes_relative(skb, 0, ip, len, BPF_HDR_START_NET);
}

// verdicts of find_udp
enum { OTHER, FOUND, HIDDEN };

// find_udp finds the UDP header. HIDDEN: nobody can tell whether it is one.
static __always_inline int find_udp(struct __sk_buff *skb, struct outer *o)
{
	__u8 *ip = o->ip;
	struct walk w = { .at = sizeof(o->ip) };

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		ip += IP4;
		if (!load_outer(skb, o, ip, IP4) || (ip[0] & 15) < 5 || ip[9] != IPPROTO_UDP)
			return OTHER;
		if ((ip[6] << 8 | ip[7]) & 0x1fff)
			return OTHER; // a later fragment, worth nothing without the first
		o->first_fragment = ip[6] & 0x20;
		o->family = AF_INET;
		o->udp = (ip[0] & 15) * 4;
		o->whole = o->whole && o->udp == IP4;
		mapped4(&o->src, &ip[12]);
		return FOUND;
	}
	if (!load_outer(skb, o, ip, sizeof(o->ip)))
		return OTHER;
	w.proto = ip[6];
	walk6(skb, 0, BPF_HDR_START_NET, &w);
	o->family = AF_INET6;
	o->first_fragment = w.first_fragment;
	o->udp = w.at;
	o->whole = o->whole && o->udp == sizeof(o->ip);
	__builtin_memcpy(&o->src, &ip[8], sizeof(o->src));
	if (w.unknown || (w.cut && w.first_fragment))
		return HIDDEN;
	return !w.cut && !w.later_fragment && w.proto == IPPROTO_UDP ? FOUND : OTHER;
}

// peer is the row of a kind for a MAC at a VTEP; NULL if there is none.
static __always_inline const struct network_val *peer(void *network, int kind, const __u8 *mac, const struct in6 *vtep)
{
	struct network_key k = {};

	__builtin_memcpy(k.mac, mac, ETH_ALEN);
	__builtin_memcpy(k.ip, vtep, sizeof(*vtep));
	k.kind = kind;
	return bpf_map_lookup_elem(network, &k);
}

// was_routed says whether a frame of the router's may come from a VTEP: it has
// the MAC of no guest, so its inner source address says whose it is. ip is the
// offset of what follows the inner Ethernet header.
static __always_inline bool was_routed(struct __sk_buff *skb, const struct tunnel *t, void *network, __u32 vni, __u32 ip,
				       const struct in6 *vtep)
{
	const __u8 anybody[ETH_ALEN] ALIGNED = {};
	bool v4 = t->type[0] == 0x08 && t->type[1] == 0x00;
	const struct network_val *of;
	struct network_key k = {};
	struct in6 src;
	__u8 four[4];

	if (v4) {
		if (bpf_skb_load_bytes_relative(skb, ip + 12, four, sizeof(four), BPF_HDR_START_NET))
			return false;
		mapped4(&src, four);
	} else if (t->type[0] != 0x86 || t->type[1] != 0xdd ||
		   bpf_skb_load_bytes_relative(skb, ip + 8, &src, sizeof(src), BPF_HDR_START_NET) || is_mapped(&src)) {
		return false;
	}
	__builtin_memcpy(k.ip, &src, sizeof(src));
	k.kind = FROM;
	of = bpf_map_lookup_elem(network, &k);
	if (of)
		return peer(network, ROUTED_BY, of->mac, vtep);
	if (peer(network, ROUTED_BY, anybody, vtep))
		return true;
	of = beyond(vni, &src, v4);
	return of && peer(network, ROUTED_BY, of->mac, vtep);
}

SEC("tc")
int cv_underlay(struct __sk_buff *skb)
{
	struct config *c = config();
	const __u8 any[ETH_ALEN] ALIGNED = {};
	const struct network_val *v;
	struct outer o;
	struct tunnel *t = &o.t;
	__u32 vni, mac;
	void *network;
	bool router;

	// A VLAN's device has the program too, and only it knows whose the VLAN is.
	if (!c || skb->vlan_present ||
	    (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6)))
		return NEXT;
	switch (find_udp(skb, &o)) {
	case OTHER:
		return NEXT;
	case HIDDEN:
		return refuse(skb, &o, FRAGMENT);
	}
	o.whole = o.whole || !bpf_skb_load_bytes_relative(skb, o.udp, t, sizeof(*t), BPF_HDR_START_NET);
	if (!o.whole && bpf_skb_load_bytes_relative(skb, o.udp, t->udp, sizeof(t->udp), BPF_HDR_START_NET))
		return o.first_fragment ? refuse(skb, &o, FRAGMENT) : NEXT;
	if (bpf_ntohs(t->udp[1]) != c->udp_port)
		return NEXT;
	if (!bpf_map_lookup_elem(&cv_vteps, &o.src))
		return refuse(skb, &o, UNKNOWN_VTEP);
	if (!o.whole)
		return refuse(skb, &o, o.first_fragment ? FRAGMENT : MALFORMED);
	mac = t->mac_src[0] | t->mac_src[1] | t->mac_src[2] | t->mac_src[3] | t->mac_src[4] | t->mac_src[5];
	if (!(t->flags & VXLAN_I) || !mac || (t->mac_src[0] & 1))
		return refuse(skb, &o, MALFORMED);
	vni = t->vni[0] << 16 | t->vni[1] << 8 | t->vni[2];
	network = bpf_map_lookup_elem(&cv_networks, &vni);
	if (!network)
		return refuse(skb, &o, UNSERVED_VNI);
	router = is_router(t->mac_src);
	if (router ? was_routed(skb, t, network, vni, o.udp + sizeof(*t), &o.src) : !!peer(network, SOURCE, t->mac_src, &o.src))
		return NEXT;
	if (peer(network, RELAYED, t->mac_dst, &o.src))
		return NEXT;
	// A foreign VTEP of this network, with whatever stands behind it, or a host
	// with guests that this one has not been told of. Last, for frames of known
	// guests are told apart sooner.
	v = peer(network, SOURCE, any, &o.src);
	if (v && (!(v->n & STRANGERS) || !(router || has_mac(network, KNOWN, t->mac_src))))
		return NEXT;
	return refuse(skb, &o, FOREIGN_SOURCE);
}
