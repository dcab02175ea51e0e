// Package bpf holds the programs that stand on a VM's port, on a VXLAN device
// and on the underlay, loads and attaches them, and writes the tables that
// they look into.
//
// The programs are in C, in this folder; gen.sh compiles them and makes the Go
// code that embeds the object. Nothing is pinned and no file is written: an
// attached program lives as long as its device, and its maps as long as one
// program does. Load finds them on the devices, so that killing the process
// loses neither verdicts nor rows nor counters.
//
// A Set is of one network namespace. Calls that name a device (Load, Standing,
// Attach, Detach) must be made on a thread of that namespace, for the kernel
// looks devices up in the caller's.
package bpf
