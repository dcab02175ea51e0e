package api

import (
	"net/netip"

	"pgregory.net/rapid"

	"culvert/internal/overlay"
)

// genSeen adds what was counted and seen.
func genSeen(t *rapid.T, r *Report) {
	counts := func(what string) (out []overlay.Count) {
		for range rapid.IntRange(0, 3).Draw(t, what) {
			out = append(out, overlay.Count{Reason: genText(t, "reason"), N: rapid.Uint64().Draw(t, "count")})
		}
		return out
	}
	r.Drops, r.Unread, r.RefusedMore = counts("drops"), counts("unread"), rapid.Uint32().Draw(t, "more")
	for range rapid.IntRange(0, MaxRefused).Draw(t, "refused") {
		x := overlay.Refused{Network: genUID(t, "network"), MAC: genMAC(t, "mac"), Device: genText(t, "device"), Reason: genText(t, "why")}
		if rapid.Bool().Draw(t, "an address") {
			x.Address = genAddr(t, "address")
		}
		r.Refused = append(r.Refused, x)
	}
	if !rapid.Bool().Draw(t, "seen") {
		return
	}
	r.Seen = []overlay.Seen{}
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		s := overlay.Seen{Network: genUID(t, "network"), MAC: genMAC(t, "mac"), Drops: counts("port's drops")}
		for range rapid.IntRange(0, 3).Draw(t, "groups") {
			s.Groups = append(s.Groups, netip.AddrFrom4([4]byte{239, 1, 2, rapid.Byte().Draw(t, "group")}))
		}
		r.Seen = append(r.Seen, s)
	}
}

func genTell(t *rapid.T) overlay.Tell {
	var w overlay.Tell
	if rapid.Bool().Draw(t, "own servers") {
		w.DHCP = overlay.DHCPOwn
	}
	w.Lease = rapid.SampledFrom([]uint32{0, overlay.MinLease, overlay.MaxLease}).Draw(t, "lease")
	for range rapid.IntRange(0, overlay.MaxDNS).Draw(t, "name servers") {
		w.DNS = append(w.DNS, genAddr(t, "name server"))
	}
	for i := range rapid.IntRange(0, overlay.MaxRoutes).Draw(t, "routes") {
		w.Routes = append(w.Routes, overlay.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), Via: netip.AddrFrom4([4]byte{10, 20, 0, byte(i)})})
	}
	if len(w.Routes) > 0 {
		w.Routes[0].Prefix = netip.MustParsePrefix("0.0.0.0/0")
	}
	return w
}
