// Maps, constants and small tools of the programs. Numbers of reasons and
// flags are those of package hoststate; a Go test compares them.
#ifndef CULVERT_H
#define CULVERT_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// LAYOUT is raised when a map's key or value changes: programs of another
// layout are replaced, but their maps are not adopted.
#define LAYOUT 4

#define ALIGNED __attribute__((aligned(8)))
#define NEXT TC_ACT_UNSPEC // == TCX_NEXT: later programs, and then the stack, decide
#define MAX_HEARD 590      // hoststate.MaxHeard
#define MAX_REASONS 32     // slots of port_state.drops, a power of two

// overlay.ServerMAC, by two bytes.
#define ROUTER_MAC0 bpf_htons(0x0263)
#define ROUTER_MAC1 bpf_htons(0x756c)
#define ROUTER_MAC2 bpf_htons(0x7674)

enum { // hoststate.DropReason
	UNCLAIMED = 1, SOURCE_MAC, SOURCE_IP, SERVER, STORM, SHORT, OWN_ADDRESS, NOT_FOR_PORT, PUNT_LIMIT,
	UNKNOWN_VTEP, UNSERVED_VNI, MALFORMED, FOREIGN_SOURCE, FRAGMENT, ROUTER, OTHER_NETWORK, UNKNOWN_MAC
};

enum { OPEN = 1, CHECK_IP = 2, NO_SERVERS = 4, WATCH = 8, CHECK_LOCAL = 16, ROUTED = 32, DEMAND = 64 }; // port_conf.flags
enum { OWN_IP = 0, OWN_MAC = 1 };                // own_key.kind
enum { OWNED = 0, SHARED = 1, ROUTERS = 2 };     // value of cv_own: whether others may claim it, too, or it is the router's
enum { SOURCE = 1, RELAYED, REACH_IP, REACH_MAC, KNOWN, FROM, ROUTED_BY }; // network_key.kind
enum { STRANGERS = 1 };                          // network_val.n of SOURCE and ROUTED_BY
enum { RELAYING = 1, ALIASING = 2 };             // bits of cv_turning
enum { HOP_V4 = 256 };                           // network_val.n of cv_routes, beside the prefix's length

// bucket is a rate as the generic cell rate algorithm takes it (ITU-T I.371):
// one word of state, which compare-and-swap changes without a lock.
struct bucket {
	__u64 interval; // nanoseconds a frame
	__u64 depth;    // nanoseconds that a burst may be ahead
};

struct config {
	__u32 layout;
	__u16 udp_port; // VXLAN's, host order
	__u16 pad;
	__u64 netns;    // cookie of the network namespace that this set is of
	struct bucket storm, punt, unclaimed, router, unknown;
};

// in6 is an address of either family; an IPv4 address is ::ffff:a.b.c.d.
struct in6 {
	__u8 b[16] ALIGNED;
};

enum { V4, V6 }; // port_conf.ip

// port_conf is what the good frames of a port need, found by one lookup.
struct port_conf {
	__u8 mac[ETH_ALEN];
	__u16 flags;
	__u32 vni;        // port_state.vni, of when the row was written
	__u32 pad;
	struct in6 ip[2]; // by family, one that cv_own has for the port, too; zero: none, look there
};

// port_state is of each port that carries the programs.
struct port_state {
	__u64 storm, punt, unclaimed, router, unknown; // of the buckets: when the next frame is due
	__u64 drops[MAX_REASONS];                      // by reason
	__u32 bridge;                                  // whose port it was when it got them; the loader's alone
	__u32 vni;                                     // of that bridge
};

struct own_key {
	__u32 port;
	__u32 kind;
	__u8 addr[16]; // an IPv4 address as ::ffff:a.b.c.d; a MAC in the first six bytes
};

struct network_key {
	__u8 mac[ETH_ALEN]; // zero in REACH_IP and FROM
	__u16 kind;
	__u8 ip[16]; // of the VTEP, or in REACH_IP and FROM of a packet; zero in REACH_MAC and KNOWN
};

struct network_val {
	__u8 mac[ETH_ALEN]; // FROM, cv_routes
	__u16 n;            // SOURCE, ROUTED_BY: STRANGERS or 0; REACH_IP: bytes that a packet may have, or 0
};

struct route_key {
	__u32 bits; // 32 and the prefix's length
	__be32 vni;
	struct in6 ip;
};

struct relay_key {
	__u32 device; // ifindex of the VXLAN device
	__u8 mac[ETH_ALEN];
	__u16 pad;
};

struct heard {
	__u64 at;      // CLOCK_MONOTONIC, nanoseconds
	__u32 port;
	__u32 length;  // of the whole frame
	__u16 copied;  // bytes of frame
	__u8 to_guest;
	__u8 dropped;
	__u8 frame[MAX_HEARD + 2];
};

#define HASH(name, k, v, n)                      \
	struct {                                     \
		__uint(type, BPF_MAP_TYPE_HASH);         \
		__uint(map_flags, BPF_F_NO_PREALLOC);    \
		__uint(max_entries, n);                  \
		__type(key, k);                          \
		__type(value, v);                        \
	} name SEC(".maps")

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} cv_config SEC(".maps");

HASH(cv_ports, __u32, struct port_conf, 16384);
HASH(cv_state, __u32, struct port_state, 16384);
HASH(cv_own, struct own_key, __u8, 65536);
HASH(cv_vteps, struct in6, __u8, 65536);
HASH(cv_relay, struct relay_key, __u8, 16384);

HASH(cv_alias, struct relay_key, struct network_val, 65536);

// cv_turning says which of cv_relay and cv_alias may have an entry.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} cv_turning SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct route_key);
	__type(value, struct network_val);
} cv_routes SEC(".maps");

HASH(cv_devices, __u32, __u32, 16384); // VXLAN device -> VNI; read by the loader alone

// The rows of one network. Its size is the loader's to choose, and to change.
struct network {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__uint(key_size, sizeof(struct network_key)); // behind a pointer, clang leaves no type of a __type
	__uint(value_size, sizeof(struct network_val));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__array(values, struct network);
} cv_networks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} cv_underdrops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} cv_heard SEC(".maps");

#endif
