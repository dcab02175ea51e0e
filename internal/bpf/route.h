// What a guest sends out of its network: by way of the router, and by no other.

static __always_inline const struct network_val *reach(void *network, const struct in6 *ip)
{
	struct network_key k = {};

	__builtin_memcpy(k.ip, ip, sizeof(*ip));
	k.kind = REACH_IP;
	return bpf_map_lookup_elem(network, &k);
}

// has_mac says whether there is a row of a kind that has but a MAC.
static __always_inline bool has_mac(void *network, int kind, const __u8 *mac)
{
	struct network_key k = {};

	__builtin_memcpy(k.mac, mac, ETH_ALEN);
	k.kind = kind;
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
		return reach(network, &target);
	}
	return f->type == ETH_P_IPV6 && f->proto == PROTO_ICMPV6 && (f->icmp == ND_SOLICIT || f->icmp == ND_ADVERT) &&
	       reach(network, &f->target);
}

// longest is the length of the longest packet that a frame is on the wire: the
// stack cuts what a guest hands over as one piece into such of gso_size bytes
// behind the headers, which are those of TCP or UDP or it is not cut.
static __always_inline __u32 longest(struct __sk_buff *skb, const struct facts *f)
{
	__u8 doff;

	if (!skb->gso_size)
		return skb->len - ETH_HLEN;
	if (f->proto == IPPROTO_UDP)
		return f->l4 - f->l3 + 8 + skb->gso_size;
	if (f->proto != IPPROTO_TCP || bpf_skb_load_bytes(skb, f->l4 + 12, &doff, 1))
		return skb->len - ETH_HLEN;
	return f->l4 - f->l3 + (doff >> 4) * 4 + skb->gso_size;
}

// hop is an IP header as far as the router looks at it.
struct hop {
	struct in6 dst;
	__be16 was; // IPv4: of which the TTL is the first byte, and the checksum knows both
	__u8 left;  // TTL or hop limit
	bool whole; // it may not be sent on in pieces
};

static __always_inline bool parse_hop(struct __sk_buff *skb, const struct facts *f, struct hop *h)
{
	__u8 ip[20] ALIGNED;

	if (f->l3 != ETH_HLEN || skb->vlan_present)
		return false; // the VXLAN device looks at no packet behind a tag
	if (f->type == ETH_P_IP) {
		if (!load(skb, ETH_HLEN, ip, sizeof(ip)))
			return false;
		mapped4(&h->dst, &ip[16]);
		h->was = *(__be16 *)&ip[8];
		h->left = ip[8];
		h->whole = ip[6] & 0x40;
		return true;
	}
	h->whole = true;
	// From a link-local address nothing leaves its network (RFC 4291 section 2.5.6),
	// and no packet has an address of IPv4's (RFC 4038 section 4.2).
	return load(skb, ETH_HLEN + 7, &h->left, 1) && load(skb, ETH_HLEN + 24, &h->dst, sizeof(h->dst)) &&
	       !is_linklocal(&f->src) && !is_mapped(&h->dst);
}

// takes_hop takes a hop off (RFC 1812 section 5.3.1, RFC 8200 section 3).
static __always_inline bool takes_hop(struct __sk_buff *skb, const struct facts *f, const struct hop *h)
{
	const __u32 ip = ETH_HLEN;
	__u8 left = h->left - 1;
	__be16 is = h->was;

	if (f->type == ETH_P_IPV6)
		return !bpf_skb_store_bytes(skb, ip + 7, &left, 1, BPF_F_RECOMPUTE_CSUM);
	*(__u8 *)&is = left;
	return !bpf_l3_csum_replace(skb, ip + 10, h->was, is, sizeof(is)) && !bpf_skb_store_bytes(skb, ip + 8, &left, 1, 0);
}

// readdress sends a packet to a MAC on its way beyond all networks. Into another
// network it goes as from the router, by whose MAC the check there knows it.
static __always_inline bool readdress(struct __sk_buff *skb, void *network, const __u8 *to)
{
	struct ethhdr eth;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return false;
	if (has_mac(network, REACH_MAC, to))
		__builtin_memcpy(eth.h_source, eth.h_dest, ETH_ALEN);
	__builtin_memcpy(eth.h_dest, to, ETH_ALEN);
	return !bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0);
}

// sends_on sends a packet on that is to the router, if it knows where to. To a
// neighbour of another network the VXLAN device does the rest.
static __always_inline bool sends_on(struct __sk_buff *skb, const struct port_conf *p, const struct facts *f, void *network)
{
	const struct network_val *at;
	struct hop h ALIGNED;
	__u8 to[ETH_ALEN];

	if (!parse_hop(skb, f, &h) || h.left <= 1)
		return false;
	at = reach(network, &h.dst);
	if (at)
		return !(at->n && h.whole && longest(skb, f) > at->n) && takes_hop(skb, f, &h);
	at = beyond(p->vni, &h.dst, f->type == ETH_P_IP);
	if (!at)
		return false;
	__builtin_memcpy(to, at->mac, ETH_ALEN); // before the packet changes
	return takes_hop(skb, f, &h) && readdress(skb, network, to);
}

// route is the verdict on a frame of a port from which packets are routed.
// up is set if the frame is a packet that the agent is to answer.
static __always_inline int route(struct __sk_buff *skb, __u32 port, const struct port_conf *p, const struct facts *f,
				 void *network, int *up)
{
	bool packet = is_router(f->mac_dst) && (f->type == ETH_P_IP || f->type == ETH_P_IPV6);

	if (network) {
		if (asks_out(skb, f, network))
			return drop(port, OTHER_NETWORK);
		if (packet && sends_on(skb, p, f, network))
			return NEXT;
		if (!packet && !(f->mac_dst[0] & 1) && has_mac(network, REACH_MAC, f->mac_dst))
			return drop(port, OTHER_NETWORK);
	}
	if (!packet)
		return NEXT;
	*up = UP_ROUTER;
	return drop(port, ROUTER);
}

// demand is the verdict on a frame of a port in whose network the tables have
// not all: what makes the kernel ask for more of them costs a bucket. up is set
// if the frame is to a group that the tables have not.
static __always_inline int demand(struct __sk_buff *skb, __u32 port, const struct facts *f, void *network, int *up)
{
	bool asks = f->type == ETH_P_ARP || (f->type == ETH_P_IPV6 && f->proto == PROTO_ICMPV6 && f->icmp == ND_SOLICIT);
	struct port_state *st;
	struct config *c;

	if (f->mac_dst[0] & 1) { // out of the bucket of a storm already
		if (!is_broadcast(f->mac_dst) && !(network && has_mac(network, KNOWN, f->mac_dst)))
			*up = UP_GROUP;
		return NEXT;
	}
	// The VXLAN device takes a question to one MAC as it does one to all.
	if (!asks && (is_router(f->mac_dst) || (network && has_mac(network, KNOWN, f->mac_dst))))
		return NEXT;
	st = state(port);
	c = config();
	if (st && c && take(&st->unknown, &c->unknown))
		return NEXT;
	return drop(port, UNKNOWN_MAC);
}

// leaves is the verdict on a frame of a port of which more is to be known than
// that the guest may send it.
static __always_inline int leaves(struct __sk_buff *skb, __u32 port, const struct port_conf *p, const struct facts *f, int *up)
{
	__u32 vni = p->vni;
	void *network = bpf_map_lookup_elem(&cv_networks, &vni);
	int verdict = NEXT;

	if (p->flags & DEMAND)
		verdict = demand(skb, port, f, network, up);
	if (verdict == NEXT && (p->flags & ROUTED))
		verdict = route(skb, port, p, f, network, up);
	return verdict;
}
