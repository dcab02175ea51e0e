package hoststate

import (
	"testing"

	"culvert/internal/overlay"
)

func TestDeviceAliasSaysClusterNetworkAndRevision(t *testing.T) {
	t.Parallel()
	uid, rev := overlay.UID{1, 2}, overlay.Rev{Epoch: 4294967295, N: 18446744073709551615}
	alias := DeviceAlias("culvert-ab12", uid, rev)
	if len(alias) > 255 { // IFALIASZ in include/uapi/linux/if.h, with its zero
		t.Errorf("alias has %d bytes", len(alias))
	}
	old := "culvert cluster=c network=" + uid.String()
	for alias, want := range map[string]struct {
		cluster string
		rev     overlay.Rev
		ok      bool
	}{
		alias:                    {"culvert-ab12", rev, true},
		old:                      {"c", overlay.Rev{}, true},
		old + " rev=1.7":         {"c", overlay.Rev{Epoch: 1, N: 7}, true},
		old + " rev=x":           {},
		old + " rev=1":           {},
		old + " rev=1.7 more":    {},
		"culvert port=acme/vm1":  {},
		"culvert cluster=c":      {},
		"":                       {},
		"culvert a=c network=00": {},
	} {
		cluster, network, rev, ok := ParseDeviceAlias(alias)
		if ok != want.ok || ok && (cluster != want.cluster || rev != want.rev || network != uid) {
			t.Errorf("%q: cluster %q, network %v, revision %v, %t; want %+v", alias, cluster, network, rev, ok, want)
		}
	}
}

func TestMarkIsOfOneCluster(t *testing.T) {
	t.Parallel()
	for _, rev := range []overlay.Rev{{}, {Epoch: 1, N: 42}, {Epoch: 0, N: 0xffff_c000_0201}, {Epoch: 4294967295, N: 18446744073709551615}} {
		k := MarkKey("culvert-ab12", rev)
		if got, ok := k.Mark("culvert-ab12"); got != rev || !ok {
			t.Errorf("mark of %v reads as %v, %t", rev, got, ok)
		}
		if got, ok := k.Mark("culvert-cd34"); ok {
			t.Errorf("mark of another cluster reads as %v", got)
		}
		if want := "mark " + rev.String(); (Row{Key: k}).String() != want {
			t.Errorf("row is %q, want %q", Row{Key: k}, want)
		}
	}
	if _, ok := (Key{Table: TableVTEP, IP: MarkKey("c", overlay.Rev{}).IP}).Mark("c"); ok {
		t.Error("a VTEP passes for a mark")
	}
}
