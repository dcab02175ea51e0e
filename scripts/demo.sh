#!/bin/sh
# The main job on this machine's kernel, told for a newcomer. Hosts and machines
# are network namespaces; agents, manager and every table are the real thing.
# The lab is called "demo" and is gone at the end, however this script ends.
set -eu
cd "$(dirname "$0")/.."
culvert=$PWD/bin/culvert
lab() { "$culvert" lab "$@" --lab demo; }

if [ "$(id -u)" -ne 0 ]; then
	echo "The demo builds network namespaces and needs root: sudo make demo" >&2
	exit 1
fi
end() {
	code=$?
	trap - EXIT INT TERM
	lab down >/dev/null 2>&1 || code=1
	[ "$code" -eq 0 ] && echo "The lab is gone; nothing was left behind." || echo "The demo did not end as it should." >&2
	exit "$code"
}
trap end EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n# %s\n' "$*"; }
run() {
	printf '$ culvert %s\n' "$*"
	"$culvert" "$@"
}
must_fail() {
	printf '$ culvert %s\n' "$*"
	if "$culvert" "$@"; then
		echo "This must not happen: something came back." >&2
		exit 1
	fi
}

say "Three hosts and a manager. Each host is a network namespace with its own agent."
lab up --hosts 3 --empty
eval "$(lab env)"

say "Two tenants. Both use the network 10.0.0.0/24, and neither knows of the other."
for t in acme zoo; do
	run tenant create $t
	run network create $t/blue --subnet 10.0.0.0/24
done

say "Two machines for each tenant: same addresses, same MACs, different owners."
for t in acme zoo; do
	lab vm create $t-1 --tenant $t --network $t/blue --host h1 --ip 10.0.0.11 --mac 52:54:00:00:00:11
	lab vm create $t-2 --tenant $t --network $t/blue --host h2 --ip 10.0.0.12 --mac 52:54:00:00:00:12
done

say "Within a tenant they reach each other, across hosts."
run lab ping acme-1 acme-2 --lab demo
run lab ping zoo-1 zoo-2 --lab demo

say "A machine that only the other tenant has is not there. This must not pass:"
lab vm create zoo-3 --tenant zoo --network zoo/blue --host h3 --ip 10.0.0.13
must_fail lab ping acme-1 10.0.0.13 --lab demo

say "What the kernel of h1 holds: where each remote machine is, by MAC and by address."
run lab tables h1 --lab demo

say "acme-2 moves from h2 to h3 while acme-1 pings it, a thousand times a second."
run lab vm migrate acme-2 h3 --while-pinging --lab demo

say "The same tables of h1: one machine of acme has moved, nothing else has changed."
run lab tables h1 --lab demo

say "A broadcast reaches the machines of its own network, on the hosts that have some."
run lab ping acme-1 10.0.0.255 --lab demo

say "A machine goes, and every host forgets it."
lab vm remove acme-2
must_fail lab ping acme-1 10.0.0.12 --lab demo

say "Taking the lab down."
