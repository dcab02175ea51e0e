package agentcore

import (
	"slices"
	"strings"
	"testing"
)

// programOf lists what the kernel holds of tap-p1's port program.
func (r *rig) programOf() string {
	var out []string
	for _, l := range strings.Split(r.dump(), "\n") {
		if strings.HasPrefix(l, "own tap-p1 ") || strings.HasPrefix(l, "port tap-p1 mac ") {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestAddressesAreCheckedWhereThePortSaysSo: its own, those that it may share
// (which others may claim, whoever holds them), and what follows from its MACs.
func TestAddressesAreCheckedWhereThePortSaysSo(t *testing.T) {
	t.Parallel()
	r := sharingRig(t)
	has := func(when, want string) {
		t.Helper()
		if got := r.programOf(); got != want {
			t.Errorf("%s: the kernel holds\n%s\nwant\n%s", when, got, want)
		}
	}
	unchecked := "own tap-p1 10.0.0.1\nown tap-p1 fd00::1\nport tap-p1 mac " + mac1 + " open"
	has("unchecked", unchecked)
	checked := sharer + " checked"
	r.news("n1", checked)
	has("checked", "own tap-p1 10.0.0.1\nown tap-p1 "+vip4+" shared\nown tap-p1 fd00::1\nown tap-p1 "+vip6+" shared\nown tap-p1 fe80::ff:fe00:1\nport tap-p1 mac "+mac1+" open,check_ip,check_local")
	// It does not matter who holds them, and they go when they are shared no more.
	r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2")
	r.news("n1", "port p1 "+mac1+" ip=10.0.0.1,10.0.0.7 share="+vip4+" checked")
	has("others", "own tap-p1 10.0.0.1\nown tap-p1 10.0.0.7\nown tap-p1 "+vip4+" shared\nown tap-p1 fe80::ff:fe00:1\nport tap-p1 mac "+mac1+" open,check_ip,check_local")
	r.news("n1", sharer)
	has("unchecked again", unchecked)
}
