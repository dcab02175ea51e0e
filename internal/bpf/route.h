// What a guest sends out of its network: by way of the router, and by no other.

// network_of is the rows of a port's network; NULL if it has none.
static __always_inline void *network_of(const struct port_conf *p)
{
	__u32 vni = p->vni;

	return bpf_map_lookup_elem(&cv_networks, &vni);
}

static __always_inline bool reaches(void *network, const struct in6 *ip)
{
	struct network_key k = {};

	__builtin_memcpy(k.ip, ip, sizeof(*ip));
	k.kind = REACH_IP;
	return bpf_map_lookup_elem(network, &k);
}

// leads_out says whether a MAC is one of another network.
static __always_inline bool leads_out(void *network, const __u8 *mac)
{
	struct network_key k = {};

	__builtin_memcpy(k.mac, mac, ETH_ALEN);
	k.kind = REACH_MAC;
	return bpf_map_lookup_elem(network, &k);
}

// asks_out says whether a frame asks for a neighbour, or claims to be one, that
// is of another network. The VXLAN device's proxy would answer: it knows them.
static __always_inline bool asks_out(struct __sk_buff *skb, const struct facts *f, void *network)
{
	struct in6 target;
	__u8 tpa[4];

	if (f->type == ETH_P_ARP) {
		if (bpf_skb_load_bytes(skb, f->l3 + 24, tpa, sizeof(tpa)))
			return false; // parse has seen it whole
		mapped4(&target, tpa);
		return reaches(network, &target);
	}
	return f->type == ETH_P_IPV6 && f->proto == PROTO_ICMPV6 && (f->icmp == ND_SOLICIT || f->icmp == ND_ADVERT) &&
	       reaches(network, &f->target);
}

// hop4 is an IPv4 header from its ninth byte on.
struct hop4 {
	__u8 ttl, proto;
	__be16 check;
	__u8 src[4], dst[4];
};

// sends_on takes a hop off a packet that the router sends on (RFC 1812 section
// 5.3.1, RFC 8200 section 3). The VXLAN device does the rest, but it looks at
// no packet behind a tag.
static __always_inline bool sends_on(struct __sk_buff *skb, const struct facts *f, void *network)
{
	const __u32 ip = ETH_HLEN;
	struct hop4 h ALIGNED, less;
	struct in6 dst;
	__u8 limit;

	if (f->l3 != ip || skb->vlan_present)
		return false;
	if (f->type == ETH_P_IP) {
		if (!load(skb, ip + 8, &h, sizeof(h)))
			return false;
		mapped4(&dst, h.dst);
		if (h.ttl <= 1 || !reaches(network, &dst))
			return false;
		less = h;
		less.ttl--;
		return !bpf_l3_csum_replace(skb, ip + 10, *(__be16 *)&h, *(__be16 *)&less, sizeof(__be16)) &&
		       !bpf_skb_store_bytes(skb, ip + 8, &less.ttl, 1, 0);
	}
	// From a link-local address nothing leaves its network (RFC 4291 section 2.5.6).
	if (!load(skb, ip + 7, &limit, 1) || !load(skb, ip + 24, &dst, sizeof(dst)) || limit <= 1 ||
	    is_linklocal(&f->src) || !reaches(network, &dst))
		return false;
	limit--;
	return !bpf_skb_store_bytes(skb, ip + 7, &limit, 1, BPF_F_RECOMPUTE_CSUM);
}

// route is the verdict on a frame of a port from which packets are routed.
// router is set if the frame is a packet that the agent is to answer.
static __always_inline int route(struct __sk_buff *skb, __u32 port, const struct port_conf *p, const struct facts *f,
				 bool *router)
{
	bool packet = is_router(f->mac_dst) && (f->type == ETH_P_IP || f->type == ETH_P_IPV6);
	void *network = network_of(p);

	if (network) {
		if (asks_out(skb, f, network))
			return drop(port, OTHER_NETWORK);
		if (packet && sends_on(skb, f, network))
			return NEXT;
		if (!packet && !(f->mac_dst[0] & 1) && leads_out(network, f->mac_dst))
			return drop(port, OTHER_NETWORK);
	}
	if (!packet)
		return NEXT;
	*router = true;
	return drop(port, ROUTER);
}
