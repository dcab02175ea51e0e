#!/bin/busybox sh
# The first process of a lab's guest. What it is to be stands on the kernel's
# command line:
#
#   cv.name=NAME           host name
#   cv.ip=A/LEN,...        IPv4 addresses of eth0
#   cv.gw=A                IPv4 gateway
#   cv.ip6=A/LEN,...       IPv6 addresses
#   cv.mtu=N               bytes
#   cv.dhcp=1              it asks for addresses, and is ready when it has
#                          those that are named, or after half a minute
#   cv.announce=1          it speaks unasked, as most systems do
#
# When it says "guest ready" on the serial line, it takes commands from there:
# a line "ID COMMAND" is run, between "begin ID" and "end ID CODE".
/bin/busybox mkdir -p /bin /proc /sys /dev /tmp /run /etc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
dmesg -n 1
for word in $(cat /proc/cmdline); do
	case $word in cv.*=*) key=${word%%=*}; eval "${key#cv.}='${word#*=}'" ;; esac
done
hostname "${name:-guest}"
set4() { echo "$2" >/proc/sys/net/ipv4/"$1"; }
set6() { for each in all default; do echo "$2" >/proc/sys/net/ipv6/conf/$each/"$1"; done; }
# Guests answer broadcast pings: that is how a lab shows whom one reaches.
set4 icmp_echo_ignore_broadcasts 0
if [ -z "${announce:-}${dhcp:-}" ]; then
	# Before eth0 is there, so that it is born silent.
	set6 accept_ra 0
	set6 autoconf 0
	set6 accept_dad 0
	set6 dad_transmits 0
	set6 router_solicitations 0
	set6 addr_gen_mode 1
fi
while read -r module; do
	insmod "$module" || echo "module $module was not loaded"
done </etc/modules
tries=0
until [ -e /sys/class/net/eth0 ] || [ $tries -ge 100 ]; do usleep 20000; tries=$((tries + 1)); done
ip link set lo up
[ -n "${mtu:-}" ] && ip link set eth0 mtu "$mtu"
ip link set eth0 up
if [ -n "${dhcp:-}" ]; then
	# It is asked whether the address is another's before it is on eth0.
	dhcpcd -b -f /etc/dhcpcd.conf -j /run/dhcpcd.log eth0 >/dev/null 2>&1
	tries=0
	for a in $(echo "${ip:-},${ip6:-}" | tr , ' '); do
		until ip address show dev eth0 | grep -v tentative | grep -qF "${a%/*}/" || [ $tries -ge 300 ]; do
			usleep 100000
			tries=$((tries + 1))
		done
	done
	ip= ip6= gw=
fi
for a in $(echo "${ip:-}" | tr , ' '); do ip address add "$a" dev eth0; done
for a in $(echo "${ip6:-}" | tr , ' '); do ip -6 address add "$a" dev eth0; done
[ -n "${gw:-}" ] && ip route add default via "$gw"
if [ -n "${ip6:-}" ]; then
	# It hears questions for its addresses once the kernel has noticed the
	# link, and answers once duplicate address detection has ended.
	tries=0
	until grep -q '^ff0* 08 .* eth0$' /proc/net/ipv6_route && ! ip -6 address show dev eth0 | grep -q tentative || [ $tries -ge 150 ]; do
		usleep 20000
		tries=$((tries + 1))
	done
fi
if [ -n "${announce:-}" ]; then
	for a in $(echo "${ip:-}" | tr , ' '); do arping -q -U -c 1 -w 1 -I eth0 "${a%/*}" & done
fi
exec 3<>/dev/ttyS0
stty -F /dev/ttyS0 -echo -onlcr
echo "guest ready" >&3
while read -r id line <&3; do
	echo "begin $id" >&3
	(eval "$line") </dev/null >&3 2>&1
	echo "end $id $?" >&3
done
# A serial line that ended is no reason for the kernel to lose its first process.
while :; do sleep 1000000; done
