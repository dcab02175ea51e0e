// Package lab builds a data centre on one machine: hosts and managers are
// network namespaces on an underlay of their own, with the real daemons in
// them, and VMs are namespaces behind a NIC that can be plugged into any host.
//
// It is a user's sandbox, the demo and the test bed alike, so it must be what
// it shows: daemons are the same binary with the same commands that a user
// types, nothing in a lab knows that it is one, and tables are read from the
// kernel, never from an agent's word.
//
// # A VM and its NIC
//
// A VM moves between hosts without its NIC going down. So the peer of its
// eth0 is not on a host but in a namespace of its own, the NIC, which has one
// veth pair for each host that the VM is or will be on:
//
//	vm ns          nic ns                        host ns
//	eth0 --------- guest  <= tc redirect =>  h1 --------- vm-web1 --- cvb42
//	                                         h2 - - - - - vm-web1     (prepared)
//
// Frames pass between `guest` and exactly one host's pair at any time, as a
// hypervisor would have it: a paused or moved guest hears nothing from the
// host that it left. A prepared pair has its NIC end down, so the host's end
// has no carrier and its bridge port does not forward.
//
// A VM may also be a guest of QEMU. Then its device on a host is a tap that
// QEMU holds, and QEMU a process on that host; it moves as hypervisors move a
// guest, so the tap on the destination is up and in the bridge, and silent,
// before the guest runs there.
//
// # What stays
//
// A lab is a set of named namespaces (/run/netns/cv-LAB-NODE), the processes
// in them and a directory under /run. Everything is found again by these
// names, so a command that was killed half-way leaves nothing that the next
// one does not find.
package lab
