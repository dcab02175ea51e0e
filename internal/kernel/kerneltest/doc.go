// Package kerneltest is a model of the part of the Linux kernel that Culvert
// uses, and the contract that both the model and package kernel obey.
//
// The model has the three methods of the kernel edge and none of its
// threads: nothing happens in it but in a call. The simulator runs many of
// them in one goroutine; tests that want the blocking Watch use Shared. Its
// methods other than Read, Apply and Doorbells are what an operator, a
// hypervisor or a vandal would do behind the agent's back.
package kerneltest
