// Package libvirt is what the hypervisor of this host says of its guests: which
// network interfaces they have, and whether each lives here now.
//
// It is a source of facts and changes nothing. It speaks libvirt's own RPC on
// the daemon's UNIX socket, so it needs no C library. An event is never taken
// at its word, with one exception that state explains: it makes the domain's
// state and description be read again. So a lost, late or doubled event does
// no harm, and whatever libvirt tells nobody about is found by looking.
//
// The package also has the other direction: hook scripts by which libvirt asks
// before a guest starts or arrives whether its ports are ready.
package libvirt
