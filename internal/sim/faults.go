package sim

// Fault is a kind of trouble. Each must hit in a run of many seeds: one that
// never does tests nothing.
type Fault int

// The kinds.
const (
	AgentKilledKept     Fault = iota // agent dies; its journal and kernel stay
	AgentKilledBare                  // agent dies and its disk with it; the kernel stays
	StoreWentBack                    // agent dies with its disk, and the manager it meets has an older store
	AgentMoved                       // agent starts again with another VTEP
	ManagerKilled                    // manager dies; the store stays
	FenceLost                        // the decider's place is lost
	OutcomeWritten                   // no answer of the store; it had written
	OutcomeNotWritten                // no answer of the store; it had not
	StoreSlow                        // the store answers late
	WatchBeforeAnswer                // the store's event comes before its answer
	StreamCut                        // both ends see the end, at different times
	MessageLost                      // and the stream ends after it
	MessageLate                      //
	ClaimsReplayed                   // messages of a former session arrive in a later one
	ItemsDoubled                     // entries come twice
	AnswersDoubled                   // answers come twice
	AgentSlow                        // reads, operations and receipt take long
	BellsOverflowed                  // kernel events are lost, and the kernel says so
	BellLost                         // one is lost silently: the slow verify finds it
	ReadFailed                       // a dump is interrupted
	OpFull                           // operations refused, by class
	OpTransient                      //
	OpRefused                        //
	OpUnknown                        //
	OpsHalfDone                      // the agent dies in the middle of a batch
	HeardLost                        // a frame that the agent should have been shown
	HeardLate                        // ... is shown late, after newer ones
	HeardDoubled                     // ... or twice
	GuestsLost                       // a hypervisor's event; a list follows
	GuestsLate                       //
	GuestsDoubled                    //
	GuestsReordered                  // an event overtakes others; a list follows
	SourceKilled                     // the source's agent dies at a step of a migration
	DestinationKilled                // the destination's agent does
	MigratedUnmanaged                // no manager decides while a migration begins, runs or ends
	MissLost                         // a miss of the kernel's
	MissDoubled                      // ... is told twice
	RowVandalised                    // rows written or deleted by somebody else
	DeviceVandalised                 // devices deleted or set down by somebody else
	RulesVandalised                  // nftables flushed or opened by somebody else
	PowerLost                        // a host loses its power: agent, kernel and VMs are gone
	HostCutOff                       // a host reaches no manager, and other hosts still reach it
	NICFlapped                       // a VM's device goes down and up
	MovedEarly                       // migration: the destination lives before the source goes
	MovedLate                        // migration: the source goes before the destination lives
	MovedBack                        // migration: and back again at once
	BackUnmanaged                    // migration: there and back, in one go without a manager
	AbortedEarly                     // migration: given up before the source stopped
	AbortedLate                      // migration: given up after the source stopped; the guest goes on there
	DestinationFailed                // ... because the destination's device went
	Suspended                        // migration: the guest stands still at the destination
	DeviceLeft                       // migration: a device stays behind
	HypervisorRestarted              // its events are lost for a while, then it lists all
	AddressMoved                     // an address moves between two ports
	VNIRefused                       // a VNI is asked for while its quarantine lasts
	VNIReused                        // a VNI is given again
	NetworkWithPorts                 // a network is deleted with its ports
	JournalRewritten                 // the journal is written anew from what the agent knows
	faults
)

var faultNames = [faults]string{
	"agent-killed-kept", "agent-killed-bare", "store-went-back", "agent-moved", "manager-killed", "fence-lost", "outcome-written", "outcome-not-written",
	"store-slow", "watch-before-answer", "stream-cut", "message-lost", "message-late", "claims-replayed", "items-doubled", "answers-doubled",
	"agent-slow", "bells-overflowed", "bell-lost", "read-failed", "op-full", "op-transient", "op-refused", "op-unknown", "ops-half-done",
	"heard-lost", "heard-late", "heard-doubled", "guests-lost", "guests-late", "guests-doubled", "guests-reordered",
	"source-killed", "destination-killed", "migrated-unmanaged", "miss-lost", "miss-doubled",
	"row-vandalised", "device-vandalised", "rules-vandalised", "power-lost", "host-cut-off", "nic-flapped", "moved-early", "moved-late", "moved-back", "back-unmanaged", "aborted-early", "aborted-late",
	"destination-failed", "suspended", "device-left", "hypervisor-restarted", "address-moved",
	"vni-refused", "vni-reused", "network-with-ports", "journal-rewritten",
}

// String is the fault's name in reports.
func (f Fault) String() string {
	if f < 0 || f >= faults {
		return "unknown"
	}
	return faultNames[f]
}

// Faults is how many kinds there are.
const Faults = int(faults)

// chooseFaults decides which kinds this seed has. About every tenth has none,
// so that what needs no trouble to break is found without it.
func (w *world) chooseFaults() {
	share := 0.35
	switch {
	case w.chance(0.1):
		share = 0
	case w.chance(0.1):
		share = 0.9
	}
	for f := range w.enabled {
		w.enabled[f] = w.chance(share)
	}
	// What users and hypervisors do is no trouble: it always happens.
	for f := NICFlapped; f < faults; f++ {
		w.enabled[f] = true
	}
	w.enabled[WatchBeforeAnswer] = true
}
