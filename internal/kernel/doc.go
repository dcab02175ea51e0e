// Package kernel is the edge to one network namespace of Linux: it reads what
// the kernel holds of the overlay, applies operations, and rings when
// something changed. It is the only writer of overlay state and decides
// nothing: package hoststate says what things mean, the agent's core what is
// to be done.
//
// Everything goes over raw netlink sockets opened once in the namespace.
// rtnetlink answers within the send call, so the sockets of Read and Apply
// block and need no poller; a batch of rows is one send of up to 128 messages
// of which only the last asks for an acknowledgement (kernel-facts 3: 30 to
// 100 times faster than one message a send). Events come over a socket of
// their own, in Watch, and misses over another, in Misses: each has a filter
// that leaves out what is the other's.
//
// No program is run and no thread stays in a foreign namespace: the few things
// that /proc or a socket call ties to the calling thread are done on a thread
// that is thrown away.
package kernel
