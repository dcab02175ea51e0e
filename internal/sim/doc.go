// Package sim runs a manager, its store and many agents in one thread, from
// one seed: the real cores, model kernels, and between them messages that went
// through the real encoder. The seed decides what users and hypervisors do,
// what breaks, and when every message, store answer and kernel event arrives;
// the same seed gives the same run, event by event.
//
// While it runs, invariants are checked at each kernel operation and each
// acknowledgement. At rest every kernel must equal an oracle that is computed
// from where the VMs are and what the store holds, by code of its own.
//
//	ops, faults --> world (time, chance, events) --> hosts: agentcore + kerneltest.Model
//	                  |                                 ^
//	                  +--> manager: managercore + store | streams (culvertv1 bytes)
//	                                ^-------------------+
package sim
