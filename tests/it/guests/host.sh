#!/bin/sh
# Inside the lab: boots the disk $1 with $2 MiB on a tap with DHCP and a metadata service, waits until ssh answers,
# runs $3 in the guest, powers it off, and says how the VMM ended. The guest's console is in /tmp/console.
tries_max=90
disk=$1 memory=$2 command=$3

tunctl -t tap0 >/dev/null
ip addr add 10.0.9.1/24 dev tap0
ip addr add 169.254.169.254/32 dev tap0
ip link set tap0 up
cat >/tmp/udhcpd.conf <<END
start 10.0.9.2
end 10.0.9.9
interface tap0
max_leases 8
option subnet 255.255.255.0
option router 10.0.9.1
lease_file /tmp/leases
END
: >/tmp/leases
udhcpd -f /tmp/udhcpd.conf 2>/dev/null &

mkdir -p /tmp/web/latest/meta-data/public-keys/0
cd /tmp/web/latest || exit 1
printf i-0001 >meta-data/instance-id
printf slim.example >meta-data/hostname
printf '0=the key' >meta-data/public-keys/index.html
cp /root/key.pub meta-data/public-keys/0/openssh-key
printf '#!/bin/sh\necho user data ran >/root/user-data\n' >user-data
httpd -p 169.254.169.254:80 -h /tmp/web
cd /root || exit 1

wisp vmm boot --disk "$disk" --mem "$memory" --tap tap0 </dev/null >/tmp/console 2>&1 &
vmm=$!
guest() {
    ssh -q -i /root/key -o BatchMode=yes -o ConnectTimeout=3 -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null root@10.0.9.2 "$@"
}
try=0
until guest true; do
    try=$((try + 1))
    if [ $try -ge $tries_max ] || ! kill -0 $vmm 2>/dev/null; then
        echo "ssh does not answer"
        break
    fi
    sleep 1
done
guest "$command"
guest poweroff
(sleep 60 && kill $vmm) 2>/dev/null &
wait $vmm
echo "vmm ended with $?"
cat /tmp/console
