// Package etcd is the store on etcd: a server inside the process, and the
// client code that an outer etcd would be used with just the same.
//
// The server of a single manager listens nowhere, neither on TCP nor on a UNIX
// socket: requests are calls (etcd's v3client). A listener would be a way around
// the manager's authority for whoever can reach it. Rejected: UNIX sockets in
// the data directory, which nothing needs, and whose path length is limited.
//
// # When the server stops itself
//
// etcd ends the process, by its logger, where a write to disk fails or a file
// cannot be read. Here that becomes an error: while opening, Open returns
// ErrCorrupt; later, all fences are lost and all watches end with ErrFailed. The
// goroutine that ran into it is stopped where it stands, so nothing is
// acknowledged after it; what it held stays held until the process ends.
//
// # Directory
//
//	<dir>/lock      held (flock) while open
//	<dir>/cluster   format and cluster id, written before anything else
//	<dir>/member/   etcd's own
package etcd
