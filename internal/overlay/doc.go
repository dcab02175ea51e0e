// Package overlay holds the nouns of Culvert: tenants, networks, ports, hosts,
// endpoints, and the values they are made of (VNI, MAC, UID, revision). It
// parses, validates and prints them and does nothing else.
//
// Every type here is a plain value: it can be copied, compared and used as a
// key. Nothing in this package reads a clock, a file or a socket, and it
// imports the standard library only, so that both cores, the wire and the
// command line can share it.
package overlay
