package agentcore

// budget bounds the processor time of reads of one kind to a tenth of one
// processor, and lets a burst of burstRead through at once: a NIC that comes up
// rings several times within a millisecond, and must not wait for the share of
// the first reading.
type budget struct {
	spent Time // time spent that has not been earned back yet
	at    Time // when spent was last brought up to date
}

const (
	burstRead = 200 * millisecond
	readShare = 10 // one part in readShare of one processor
)

// spend takes a read that took d and ended at now.
func (b *budget) spend(now, d Time) {
	b.spent = max(0, b.spent-(now-b.at)/readShare) + d
	b.at = now
}

// next is when the next read may begin; it is in the past if at once.
func (b *budget) next() Time {
	return b.at + (b.spent-burstRead)*readShare
}
