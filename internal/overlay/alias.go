package overlay

import "crypto/sha256"

// Alias is the MAC by which the hosts of other networks name the endpoint of a
// network: in their tables its own could be another's. It follows from the two,
// so that who sends to it and who takes what is sent agree without a word: the
// first 48 bits of a SHA-256 over them, made a locally administered unicast
// address (IEEE 802c section 4: 46 bits are left). It is never ServerMAC, which
// it may not be taken for.
func Alias(network UID, mac MAC) MAC {
	var both [len(network) + len(mac)]byte
	copy(both[copy(both[:], network[:]):], mac[:])
	for h := sha256.Sum256(both[:]); ; h = sha256.Sum256(h[:]) {
		a := MAC(h[:6])
		if a[0] = a[0]&^1 | 2; a != ServerMAC {
			return a
		}
	}
}
