# Runs one host's libvirtd: first process of a PID namespace, in a mount and a
# UTS namespace of its own, so that hosts of one machine do not meet.
#
#   $1 the host's directory    $2 its name    $3 directory that the hosts share
#
# It is the first process for a reason: libvirt lets its QEMUs be inherited and
# asks until they are gone, so whoever inherits them must reap them at once;
# and when it ends, the kernel ends all guests of the host.
set -eu
dir=$1
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sys /sys # it shows the devices of the namespace that mounts it
hostname "$2"
# The qemu driver looks up its compiled-in user before it reads its
# configuration, and a host's own name is looked up for each guest: by DNS,
# that would wait for an answer that cannot come.
for f in passwd group hosts nsswitch.conf; do mount --bind "$dir/$f" "/etc/$f"; done
mount --bind "$dir/etc" /etc/libvirt
# What QEMU can do is found out once for all hosts: it takes seconds.
mount --bind "$3" "$dir/var/cache/libvirt"
mount --rbind "$dir/var" /var
# The machine's own /run, whose daemons a host of a lab does not know.
# The lab's files stay where they are.
mount --bind "$dir/run" "$dir/newrun/libvirt"
if [ -d /run/culvert ]; then
	mkdir -p "$dir/newrun/culvert"
	mount --bind /run/culvert "$dir/newrun/culvert"
fi
mount --rbind "$dir/newrun" /run
# One that was killed is started again, as an init system does. Guests live on.
while :; do
	libvirtd --pid-file /run/libvirt/libvirtd.pid --config /etc/libvirt/libvirtd.conf || echo "libvirtd ended: $?"
	sleep 0.2
done
