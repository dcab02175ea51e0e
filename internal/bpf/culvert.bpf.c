//go:build ignore

// The programs of a VM's port, of a VXLAN device and of the underlay. A frame
// that one of them lets pass goes on to later programs and the stack (NEXT).
//
// They cope with any skb, and trust no length in a frame.
#include "frame.h"

char _license[] SEC("license") = "Dual MIT/GPL";

// state is looked up only by what counts, so that good frames do without.
static __always_inline struct port_state *state(__u32 port)
{
	return bpf_map_lookup_elem(&cv_state, &port);
}

// drop counts one frame of a port. A reason is always a constant.
static __always_inline int drop(__u32 port, __u32 reason)
{
	struct port_state *st = state(port);

	if (st)
		__sync_fetch_and_add(&st->drops[reason & (MAX_REASONS - 1)], 1);
	return TC_ACT_SHOT;
}

// take takes one frame out of a bucket, whose state is the time at which the
// next frame is due. A swap that loses eight times finds the bucket empty.
static __always_inline bool take(__u64 *due, const struct bucket *b)
{
	__u64 now = bpf_ktime_get_ns();

#pragma unroll
	for (int i = 0; i < 8; i++) {
		__u64 old = *(volatile __u64 *)due;
		__u64 from = old > now ? old : now;

		if (from - now > b->depth)
			return false;
		if (__sync_val_compare_and_swap(due, old, from + b->interval) == old)
			return true;
	}
	return false;
}

static __always_inline struct config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cv_config, &zero);
}

// calm says whether a group-addressed frame is still within the port's bucket.
static __always_inline bool calm(__u32 port)
{
	struct port_state *st = state(port);
	struct config *c = config();

	return st && c && take(&st->storm, &c->storm);
}

// Which bucket a frame that is handed up is taken out of. Each has its own, so
// that a guest with much to say of one kind is heard with the others.
enum { PUNT, PUNT_UNCLAIMED, PUNT_ROUTER };

static __always_inline bool may_hear(struct port_state *st, const struct config *c, int bucket)
{
	switch (bucket) {
	case PUNT_UNCLAIMED:
		return take(&st->unclaimed, &c->unclaimed);
	case PUNT_ROUTER:
		return take(&st->router, &c->router);
	}
	return take(&st->punt, &c->punt);
}

// hear hands a copy up if its bucket, a constant, allows it.
static __always_inline void hear(struct __sk_buff *skb, int bucket, bool to_guest, bool dropped)
{
	struct port_state *st = state(skb->ifindex);
	struct config *c = config();
	struct heard *h;
	// One byte less than is copied. The verifier of 6.1 learns from no test that
	// a length is not zero; that it is one more than this it sees.
	__u32 n = skb->len - 1;

	if (!st || !c)
		return;
	if (!may_hear(st, c, bucket) || !(h = bpf_ringbuf_reserve(&cv_heard, sizeof(*h), 0))) {
		__sync_fetch_and_add(&st->drops[PUNT_LIMIT], 1);
		return;
	}
	if (n > MAX_HEARD - 1)
		n = MAX_HEARD - 1;
	asm volatile("" : "+r"(n)); // else the two are made one, and tested otherwise
	h->at = bpf_ktime_get_ns();
	h->port = skb->ifindex;
	h->length = skb->len;
	h->copied = n + 1;
	h->to_guest = to_guest;
	h->dropped = dropped;
	if (bpf_skb_load_bytes(skb, 0, h->frame, n + 1))
		bpf_ringbuf_discard(h, 0);
	else
		bpf_ringbuf_submit(h, 0);
}

static __always_inline bool owns_mac(__u32 port, const struct port_conf *p, const __u8 *mac)
{
	struct own_key k = { .port = port, .kind = OWN_MAC };

	if (same_mac(p->mac, mac))
		return true;
	__builtin_memcpy(k.addr, mac, ETH_ALEN);
	return bpf_map_lookup_elem(&cv_own, &k) != NULL;
}

// owned is what the port has an address as; NULL if it has not.
static __always_inline const __u8 *owned(__u32 port, const struct in6 *ip)
{
	struct own_key k = { .port = port, .kind = OWN_IP };

	__builtin_memcpy(k.addr, ip, sizeof(*ip));
	return bpf_map_lookup_elem(&cv_own, &k);
}

// poses says whether a frame of the guest's comes from an address of the router,
// or claims one.
static __always_inline bool poses(__u32 port, const struct port_conf *p, const struct facts *f)
{
	const __u8 *as;

	if (f->type != ETH_P_ARP && f->type != ETH_P_IP && f->type != ETH_P_IPV6)
		return false;
	if (f->type == ETH_P_IPV6 && f->proto == PROTO_ICMPV6 && f->icmp == ND_ADVERT) {
		as = owned(port, &f->target);
		if (as && *as == ROUTERS)
			return true;
	}
	if (same_ip(&f->src, &p->ip[f->type == ETH_P_IPV6 ? V6 : V4]))
		return false;
	as = owned(port, &f->src);
	return as && *as == ROUTERS;
}

// may_use says whether a guest whose addresses are checked may have one.
static __always_inline bool may_use(__u32 port, const struct port_conf *p, int family, const struct in6 *ip)
{
	if (same_ip(ip, &p->ip[family]) && !is_any6(ip))
		return true;
	return (family == V6 && is_linklocal(ip) && !(p->flags & CHECK_LOCAL)) || owned(port, ip); // the router's: see poses
}

// spoofs says whether a frame of the guest's names an address that it may not
// use, where it may name only such.
static __always_inline bool spoofs(__u32 port, const struct port_conf *p, const struct facts *f)
{
	switch (f->type) {
	case ETH_P_8021Q:
	case ETH_P_8021AD:
		return true; // behind more tags than are looked through
	case ETH_P_ARP:
		return !is_any4(&f->src) && !may_use(port, p, V4, &f->src); // 0: a probe (RFC 5227)
	case ETH_P_IP:
		if (is_any4(&f->src))
			return !(f->proto == IPPROTO_UDP && f->sport == 68 && f->dport == 67); // RFC 2131 section 4.1
		return !may_use(port, p, V4, &f->src);
	case ETH_P_IPV6:
		if (f->proto == PROTO_ICMPV6 && f->icmp == ND_ADVERT && !may_use(port, p, V6, &f->target))
			return true;
		if (is_any6(&f->src)) // of one that has none yet (RFC 4862 section 5.4.2, RFC 3810 section 5.2.13)
			return f->proto != PROTO_ICMPV6;
		return !may_use(port, p, V6, &f->src);
	}
	return false;
}

static __always_inline bool serves(const struct facts *f)
{
	if (f->unknown)
		return true; // hidden behind more headers than anybody needs (RFC 7113 section 3)
	if (f->proto == PROTO_ICMPV6)
		return f->icmp == ND_ROUTER_ADVERT;
	return f->proto == IPPROTO_UDP && f->sport == (f->type == ETH_P_IP ? 67 : 547);
}

// beyond is where packets to an address beyond all networks go, or from such a
// one come from; NULL if nowhere. An IPv4 address is in no prefix of IPv6, though
// the table holds it as one that is.
static __always_inline const struct network_val *beyond(__u32 vni, const struct in6 *ip, bool v4)
{
	struct route_key k = { .bits = 32 + 128, .vni = bpf_htonl(vni) };
	const struct network_val *v;

	__builtin_memcpy(&k.ip, ip, sizeof(*ip));
	v = bpf_map_lookup_elem(&cv_routes, &k);
	if (!v || !(v->n & HOP_V4) != !v4 || !(v->mac[0] | v->mac[1] | v->mac[2] | v->mac[3] | v->mac[4] | v->mac[5]))
		return NULL;
	return v;
}

// Why a frame of a guest is handed up beside those that name addresses.
enum { UP_ROUTER = 1, UP_GROUP };

#include "route.h"

SEC("tc")
int cv_from_port(struct __sk_buff *skb)
{
	struct facts f = {};
	__u32 port = skb->ifindex;
	struct port_conf *p;
	int verdict = NEXT;
	int up = 0;

	if (!parse_ethernet(skb, &f))
		return drop(port, SHORT);
	p = bpf_map_lookup_elem(&cv_ports, &port);
	if (!p || !(p->flags & OPEN)) {
		hear(skb, PUNT_UNCLAIMED, false, true);
		return drop(port, UNCLAIMED);
	}
	if (!owns_mac(port, p, f.mac_src)) {
		hear(skb, PUNT_UNCLAIMED, false, true);
		return drop(port, SOURCE_MAC);
	}
	if (!parse(skb, &f))
		return drop(port, SHORT);
	if (poses(port, p, &f) || ((p->flags & CHECK_IP) && spoofs(port, p, &f)))
		verdict = drop(port, SOURCE_IP);
	else if ((p->flags & NO_SERVERS) && serves(&f))
		return drop(port, SERVER);
	else if ((f.mac_dst[0] & 1) && !calm(port))
		return drop(port, STORM);
	else if (p->flags & (ROUTED | DEMAND))
		verdict = leaves(skb, port, p, &f, &up);
	if (worth_hearing(&f))
		hear(skb, PUNT, false, verdict != NEXT);
	else if (up == UP_ROUTER)
		hear(skb, PUNT_ROUTER, false, true);
	else if (up == UP_GROUP)
		hear(skb, PUNT, false, false);
	else if (p->flags & WATCH)
		hear(skb, PUNT_UNCLAIMED, false, verdict != NEXT);
	return verdict;
}

// anothers says whether an address that a frame gives to a MAC belongs to the
// port, which has not that MAC, or to the router.
static __always_inline bool anothers(__u32 port, const struct port_conf *p, const struct in6 *ip, const __u8 *mac)
{
	const __u8 *as = owned(port, ip);

	if (!as)
		return false;
	return *as == ROUTERS ? !is_router(mac) : *as == OWNED && !owns_mac(port, p, mac);
}

// claims_own says whether a frame that is to go to the guest gives an address
// of the guest's own, or of the router, to somebody else.
static __always_inline bool claims_own(__u32 port, const struct port_conf *p, const struct facts *f)
{
	switch (f->type) {
	case ETH_P_ARP:
		return !is_any4(&f->src) && anothers(port, p, &f->src, f->arp_mac);
	case ETH_P_IPV6:
		if (f->proto != PROTO_ICMPV6)
			return false;
		// A solicitation from :: probes an address before it is taken (RFC
		// 4862 section 5.4.2); any other one only asks for it.
		if (f->icmp != ND_ADVERT && !(f->icmp == ND_SOLICIT && is_any6(&f->src)))
			return false;
		return anothers(port, p, &f->target, f->mac_src);
	}
	return false;
}

// to_nobody says whether a frame is a neighbour advertisement to the unspecified
// address, which the VXLAN device's proxy makes when it answers a guest's
// duplicate address detection, and which no receiver may take (RFC 4861 section
// 7.1.2). The agent answers in its place.
static __always_inline bool to_nobody(struct __sk_buff *skb, const struct facts *f)
{
	struct in6 dst;

	return f->type == ETH_P_IPV6 && f->proto == PROTO_ICMPV6 && f->icmp == ND_ADVERT &&
	       !bpf_skb_load_bytes(skb, f->l3 + 24, &dst, sizeof(dst)) && is_any6(&dst);
}

SEC("tc")
int cv_to_port(struct __sk_buff *skb)
{
	struct facts f = {};
	__u32 port = skb->ifindex;
	struct port_conf *p;

	p = bpf_map_lookup_elem(&cv_ports, &port);
	if (!p || !(p->flags & OPEN))
		return drop(port, UNCLAIMED);
	if (!parse_ethernet(skb, &f))
		return drop(port, SHORT);
	if (!(f.mac_dst[0] & 1) && !owns_mac(port, p, f.mac_dst))
		return drop(port, NOT_FOR_PORT);
	if (!parse(skb, &f))
		return NEXT; // the guest's own stack is the judge of what is cut
	if (to_nobody(skb, &f))
		return drop(port, MALFORMED);
	if (claims_own(port, p, &f))
		return drop(port, OWN_ADDRESS);
	if (f.proto == IPPROTO_UDP && (f.type == ETH_P_IP ? f.sport == 67 : f.sport == 547))
		hear(skb, PUNT, true, false);
	return NEXT;
}

// cv_from_overlay gives a frame that other networks' hosts sent to an alias to
// whom it is, and sends a frame for a MAC that has moved out again, over the
// device that it came from: a bridge never does.
SEC("tc")
int cv_from_overlay(struct __sk_buff *skb)
{
	struct relay_key k = { .device = skb->ifindex };
	__u32 zero = 0, *turning = bpf_map_lookup_elem(&cv_turning, &zero);
	const struct network_val *is;

	if (!turning || !*turning || !load(skb, 0, k.mac, ETH_ALEN) || (k.mac[0] & 1))
		return NEXT;
	if (*turning & ALIASING) {
		is = bpf_map_lookup_elem(&cv_alias, &k);
		if (is) {
			__builtin_memcpy(k.mac, is->mac, ETH_ALEN);
			if (bpf_skb_store_bytes(skb, 0, k.mac, ETH_ALEN, 0))
				return TC_ACT_SHOT; // to nobody here
		}
	}
	if (!(*turning & RELAYING) || !bpf_map_lookup_elem(&cv_relay, &k))
		return NEXT;
	return bpf_redirect(skb->ifindex, 0);
}

#include "underlay.h"
