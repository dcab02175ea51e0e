// Package trust is who is who in a cluster: the cluster's own authority (CA),
// the certificates it gives, the tokens by which a machine gets its first one,
// and the TLS settings of both ends. Standard library only.
//
// One CA key signs for one cluster. A certificate's identity is its one URI,
//
//	culvert://<cluster>/<role>/<uid>
//
// and nothing else: names and addresses in it are for people and browsers. So a
// manager may change its address, and a host its name, without a new
// certificate, and a certificate cannot be used in another role than its own.
//
// Every secret is held by Secret or Key, which print as "[secret]" whatever the
// verb, also as unexported fields of other structs.
package trust
