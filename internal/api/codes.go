package api

// Exit is the exit code of a command. The numbers are a contract with scripts.
type Exit int

// Exit codes.
const (
	ExitOK          Exit = 0 // done, or equal to what was asked
	ExitDiffers     Exit = 1 // differs, or degraded
	ExitUsage       Exit = 2 // the command or document is not well formed
	ExitUnreachable Exit = 3 // managers not reachable
	ExitPending     Exit = 4 // accepted, but not yet everywhere
	ExitRefused     Exit = 5 // refused by a rule
	ExitNotAllowed  Exit = 6 // not allowed for this caller
	ExitNotFound    Exit = 7 // no such thing
	ExitConflict    Exit = 8 // conflicts with what is there
	ExitHurt        Exit = 9 // the data plane is hurt
)

// Codes of the command line, of documents and connections: CV00xx. Those of
// the manager's rules are CV01xx, health items of a host are CV02xx.
const (
	CodeUsage        Code = "CV0001" // the command line is not understood
	CodeDocument     Code = "CV0002" // a document is not well formed
	CodeAmbiguous    Code = "CV0005" // a bare name is of several tenants
	CodeFile         Code = "CV0006" // a file is not usable
	CodeLocal        Code = "CV0007" // something on this machine was in the way
	CodeUnreachable  Code = "CV0010" // no manager answers
	CodeOtherCluster Code = "CV0011" // the server is not of our cluster
	CodeNoCluster    Code = "CV0012" // no configuration, no lab
	CodeNoAgent      Code = "CV0013" // the local agent does not answer
	CodeUnanswered   Code = "CV0014" // no answer in time
	CodeVersion      Code = "CV0015" // no common protocol
	CodeServer       Code = "CV0016" // the server could not do it
	CodeToken        Code = "CV0021" // the token is not valid
	CodeTokenExpired Code = "CV0022" // the token's time is over
	CodeTokenUsed    Code = "CV0023" // the token has been used
	CodePin          Code = "CV0024" // the authority is not the token's
	CodeHostTaken    Code = "CV0025" // the host's name is another's
	CodeCertificate  Code = "CV0026" // the certificate is not accepted
	CodeHostNotYours Code = "CV0027" // the network does not select the host
	CodeOlderStore   Code = "CV0028" // the manager knows less than the host
	CodeDevice       Code = "CV0030" // a device cannot be attached
	CodeNotReady     Code = "CV0031" // a guest's port is not ready on its host
	CodeGuest        Code = "CV0032" // a guest's interface is not its port's
	CodeHook         Code = "CV0033" // hooks cannot be installed
	CodePending      Code = "CV0170" // accepted, not yet everywhere
	CodeKernelNewer  Code = "CV0208" // the manager knows less than the host's kernel
)

// Info is what there is to know about a code. Documentation and the verb that
// explains codes are made from these rows.
type Info struct {
	Code    Code
	Exit    Exit
	Title   string // a few words, for lists
	Meaning string // one or two sentences: when it is printed, and what follows
	Cure    string // what to type when the place that refuses knows nothing better
}

// Codes is the whole table, ordered by code.
var Codes = []Info{
	{CodeUsage, ExitUsage, "command not understood", "The command line names a verb, a flag or a value that culvert does not have. Nothing was sent.", "See the verbs and their examples: culvert --help"},
	{CodeDocument, ExitUsage, "document not understood", "A document is not well formed: its syntax, an unknown field, a wrong type, a key given twice. Nothing of the file was applied.", "See the fields of a kind: culvert schema network"},
	{CodeAmbiguous, ExitUsage, "name is of several tenants", "A name without tenant is of tenant default or the only match; here several tenants have it.", "Name the tenant: --tenant TENANT, or TENANT/NAME."},
	{CodeFile, ExitUsage, "file not usable", "A file that the command needs is missing, not readable, or not of the right form.", "Check the path and its mode."},
	{CodeLocal, ExitDiffers, "not finished on this machine", "Something on this machine was in the way: a port that is taken, a full disk, a missing right. The reason names it.", "Remove what the reason names, then type the same command again."},
	{CodeUnreachable, ExitUnreachable, "managers not reachable", "No manager answered at the addresses that this machine knows. Running VMs are not concerned: hosts keep what they have.", "Check the address and the way to it; on the manager's machine: culvert manager run"},
	{CodeOtherCluster, ExitNotAllowed, "another cluster answers", "The server at the address has a certificate that the cluster's authority did not sign. Nothing was sent to it.", "Check the address in the configuration, or who answers there."},
	{CodeNoCluster, ExitUnreachable, "no cluster on this machine", "There is no configuration on this machine and no lab runs here, so there is nobody to ask.", "Make a cluster: culvert init. Or a lab: culvert lab up"},
	{CodeNoAgent, ExitUnreachable, "agent not reachable", "The agent of this host does not answer on its socket. Devices and tables stay as they are.", "Start it: culvert agent run"},
	{CodeUnanswered, ExitUnreachable, "no answer in time", "The manager was reached but did not answer in time. A change may have been made or not.", "Type the same command again: what is done already is reported as unchanged."},
	{CodeVersion, ExitUnreachable, "versions do not fit", "The two sides have no common version of the protocol.", "Compare the versions on both machines: culvert version"},
	{CodeServer, ExitUnreachable, "server could not do it", "The server took the call and ended it without a reason that this release knows.", "Look into the manager's log, and at: culvert status"},
	{CodeToken, ExitNotAllowed, "token not valid", "The token is damaged, or this cluster did not make it.", "Make a new one on an operator's machine: culvert token create --role agent"},
	{CodeTokenExpired, ExitNotAllowed, "token expired", "The token was made by this cluster, and its time is over.", "Make a new one on an operator's machine: culvert token create --role agent"},
	{CodeTokenUsed, ExitNotAllowed, "token used up", "The token has been used as often as it may.", "Make a new one on an operator's machine: culvert token create --role agent --uses 20"},
	{CodePin, ExitNotAllowed, "authority is not the token's", "The server that answered is not of the cluster that made the token: its authority differs from the pin in the token. Nothing was sent to it.", "Check the address, or make a new token there: culvert token create --role agent"},
	{CodeHostTaken, ExitConflict, "host name taken", "Another machine has joined under this name, or this machine under another one.", "See the hosts: culvert host list"},
	{CodeCertificate, ExitNotAllowed, "certificate not accepted", "The server does not accept the caller's certificate: it is of another cluster, expired, or missing.", "Use the configuration that culvert init wrote on the first machine."},
	{CodeHostNotYours, ExitNotAllowed, "not this host's", "An agent asked for a network or a port that does not select its host.", "See what is selected: culvert network list"},
	{CodeOlderStore, ExitConflict, "manager knows less than the host", "The host's agent holds a revision that this manager's store has never had: the store is an older copy. The host keeps all it has and takes nothing from it.", "Put the newer store back, then start the manager: culvert manager run"},
	{CodeDevice, ExitRefused, "device not usable", "The device is missing, is one of culvert's own, or is part of a bridge that is not.", "See the devices of this host: ip link"},
	{CodeNotReady, ExitPending, "port not ready", "A guest's port is declared, but this host has not made what it needs yet. The guest was not started.", "Look at this host, then start the guest again: culvert host list"},
	{CodeGuest, ExitRefused, "interface is not the port's", "The interface in the guest's description differs from the port that it names, or that its MAC has.", "Compare it with the port: culvert port list"},
	{CodeHook, ExitRefused, "hook not written", "libvirt's folder of hooks has a script of that name that is not culvert's.", "Look at it, then move it away or call culvert from it."},

	{CodeField, ExitUsage, "value not allowed", "A field or flag has a value outside what is allowed. Nothing was applied.", "See the fields of a kind: culvert schema network"},
	{CodeLater, ExitUsage, "not in this release", "The format has a place for this, but this release does not do it. It is refused rather than ignored.", "Leave it out."},
	{CodeNotFound, ExitNotFound, "not found", "There is nothing of this kind and name, or it has been deleted.", "See what there is: culvert network list"},
	{CodeExists, ExitConflict, "exists with other content", "Creating is repeatable only with the same content; something of that name is there with another.", "To change it use the verb set: culvert network set --help"},
	{CodeImmutable, ExitRefused, "fixed at creation", "This field cannot be changed afterwards: devices and tables in kernels are built from it.", "Delete it and create it anew."},
	{CodeQuota, ExitRefused, "quota reached", "The tenant, or the domain, has as many as its quota allows.", "Raise it: culvert tenant set --help"},
	{CodeStale, ExitConflict, "changed meanwhile", "The document carries the revision that it was read at, and somebody has changed or deleted the thing since. Nothing was written, so that the other change is not lost.", "Read it again and repeat the change, or leave metadata.revision out to overwrite it: culvert network show --help"},
	{CodeVNIInUse, ExitConflict, "VNI in use", "Another network has this VNI. A VNI is unique in the cluster.", "Take another, or leave it out to have one allocated: culvert network list"},
	{CodeVNIWaits, ExitConflict, "VNI in quarantine", "The VNI is of a deleted network that a host may still have in its kernel: used again now, it would join the two.", "Take another VNI, or bring the hosts back first: culvert host list"},
	{CodeOverlap, ExitRefused, "subnets overlap", "Two subnets of a network, or of networks of one domain that are not bridged, share addresses.", "Give subnets that share no address."},
	{CodeOutside, ExitRefused, "address outside the subnets", "A port's address must be one that a guest may have in a subnet of its network: not the first, not the broadcast address.", "See the subnets: culvert network list"},
	{CodeAddressInUse, ExitConflict, "address taken", "Another port of the network, or of one that is bridged with it, has this address, or it is the gateway; or a tunnel end point that was declared foreign is a host's.", "See the ports: culvert port list"},
	{CodeMACInUse, ExitConflict, "MAC taken", "Another port of the network has this MAC, or something in a network that is bridged with it.", "See the ports: culvert port list"},
	{CodeSubnetFull, ExitRefused, "no address free", "Every address of the subnet that a port may have is taken.", "Delete ports that nobody needs: culvert port list"},
	{CodeUndeclared, ExitRefused, "undeclared endpoints are not bridged", "A network that a policy bridges with another takes declared ports only: MACs and addresses of others are not compared across networks.", "Declare the ports, then: culvert network set NETWORK --admission declared"},
	{CodeBridgeMTU, ExitRefused, "MTUs of bridged networks differ", "Networks that a policy bridges are one segment: what a guest of one may send, a guest of the other must be able to take.", "Give both the same MTU first: culvert network set NETWORK --mtu BYTES"},
	{CodeTwoModes, ExitRefused, "networks are routed and bridged", "Two networks are routed to each other or bridged: what is one segment is not reached by way of a router.", "Delete the policies of the other mode first: culvert policy list"},
	{CodeConsent, ExitRefused, "domain of another tenant", "A network is in a domain of another tenant when both want it: the network names the domain, and the domain names the network's tenant.", "Let the tenant in first: culvert domain set DOMAIN --admit-tenant TENANT"},
	{CodeNextHop, ExitRefused, "no such next hop", "A route of a domain goes by way of a declared port's own address in a network of the domain.", "See the ports: culvert port list"},
	{CodeHasPorts, ExitRefused, "network has ports", "A network with ports is deleted only when asked for with its ports; they are blocked first.", "Stop or move the VMs, or delete the ports too: culvert network delete NETWORK --with-ports"},
	{CodeHasNetworks, ExitRefused, "tenant owns something", "A tenant is deleted when it owns nothing any more, and no domain of another lets its networks in.", "Delete its networks and domains first: culvert network list"},
	{CodeNoHost, ExitNotFound, "host not found", "A network or a port names a host that has not joined, or that the network does not select.", "See the hosts: culvert host list"},
	{CodeBlocked, ExitConflict, "network is being deleted", "Its ports are blocked and it takes no changes.", "Finish it: culvert network delete NETWORK --with-ports"},
	{CodeNotInDomain, ExitRefused, "network is not in the domain", "A policy opens the way between two networks of its own domain.", "Put it in first: culvert network set NETWORK --domain DOMAIN"},
	{CodeHasPolicies, ExitRefused, "policies name the network", "A network that policies name is not deleted, and stays in its domain.", "Delete the policies first: culvert policy list"},
	{CodeDomainInUse, ExitRefused, "domain is in use", "A domain is deleted when it has no networks and no policies any more, and lets a tenant in as long as it has networks of it.", "Take its networks out first: culvert network set NETWORK --no-domain"},
	{CodeHasRoutes, ExitRefused, "routes go by way of the port", "A port by way of which a route of its domain goes stays, with that address, and its network stays in the domain.", "Give the domain other routes first: culvert domain set DOMAIN --no-route"},
	{CodeUnknown, ExitUnreachable, "outcome not known", "The manager lost its place or its store while it worked, so the change may have been made or not.", "Type the same command again: what is done already is reported as unchanged."},
	{CodeNotDecider, ExitUnreachable, "no manager decides just now", "The managers are choosing who decides, or read their store. Nothing was changed.", "Type the same command again in a second: culvert status"},
	{CodeHostInUse, ExitConflict, "host in use by the network", "A host with endpoints of a network is not taken off it: they would be cut off.", "See who is where: culvert endpoint list --network NETWORK"},
	{CodeNotAllowed, ExitNotAllowed, "not allowed", "The caller's certificate has not the role that the call needs, or the caller on the socket is another user.", "Use the operator's configuration, or as root on the manager's machine: culvert token create --role operator"},
	{CodePending, ExitPending, "not yet everywhere", "The change is accepted and durable, but some hosts do not hold it yet. They take it as soon as they can.", "See which: culvert host list"},

	{CodeKernelNewer, ExitDiffers, "manager knows less than a host's kernel", "An agent without its journal found in its kernel how far it had come, and the manager's store, an older copy, has not come so far. The host keeps all it has and takes nothing from it.", "Put the newer store back, then start the manager: culvert manager run"},
}

// Lookup finds the row of a code.
func Lookup(c Code) (Info, bool) {
	for _, info := range Codes {
		if info.Code == c {
			return info, true
		}
	}
	return Info{}, false
}
