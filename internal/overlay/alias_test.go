package overlay

import (
	"testing"

	"pgregory.net/rapid"
)

// TestAlias: the same on every host and of every version, for it is in the
// kernels of those that send and of those that take.
func TestAlias(t *testing.T) {
	t.Parallel()
	// sha256sum of the 22 bytes begins with 21101c42850d.
	if got, want := Alias(UID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, MAC{0x52, 0x54, 0, 0, 0, 1}).String(), "22:10:1c:42:85:0d"; got != want {
		t.Errorf("alias is %s, want %s", got, want)
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := rapid.SliceOfN(rapid.Byte(), 16, 16)
		n, m := UID(draw.Draw(t, "network")), MAC(draw.Draw(t, "mac")[:6])
		a := Alias(n, m)
		if !a.IsUnicast() || a[0]&2 == 0 || a == ServerMAC {
			t.Fatalf("alias %s is not one of an interface, or is globally administered", a)
		}
		if n[0]++; Alias(n, m) == a {
			t.Fatalf("%s is the alias in two networks", a)
		}
	})
}
