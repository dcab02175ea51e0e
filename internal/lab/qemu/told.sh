#!/bin/busybox sh
# What dhcpcd runs when it was told something. It sets addresses and routes
# itself, but gives the MTU to routes alone; the interface has it from here, as
# most systems do it.
[ -n "$new_interface_mtu" ] && ip link set "$interface" mtu "$new_interface_mtu"
case $reason in
*6) name=/run/dns6 list=$new_dhcp6_name_servers ;;
ROUTERADVERT) name=/run/dnsra list=$nd1_rdnss1_servers ;;
*) name=/run/dns4 list=$new_domain_name_servers ;;
esac
[ -n "$list" ] && for a in $list; do echo "nameserver $a"; done >$name
cat /run/dns* 2>/dev/null | sort -u >/etc/resolv.conf
