package kernel
import ("testing")
func BenchmarkSentinel(b *testing.B) {
	k := benchDevice(b)
	for b.Loop() { s, _ := k.watchDeletions(); s.close() }
}
func BenchmarkInNS(b *testing.B) {
	k := benchDevice(b)
	for b.Loop() { _ = inNS(k.ns, func() error { return nil }) }
}
func BenchmarkLookup(b *testing.B) {
	k := benchDevice(b)
	for b.Loop() { _, _ = k.lookup(k.read, 100) }
}
func BenchmarkNft(b *testing.B) {
	k := benchDevice(b)
	for b.Loop() { h, _ := readBase(k.nfr);  _, _ = k.baseStands(h) }
}
func BenchmarkNftBase(b *testing.B) {
	k := benchDevice(b)
	for b.Loop() { _, _ = readBase(k.nfr) }
}
