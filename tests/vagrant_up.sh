# `vagrant up` of the lab in network, mount and PID namespaces of its own: libvirtd, its bridge, its rules and its files are gone with them.
# Arguments: the checkout, a scratch folder with the box in it, outside /etc and /var. The Jupyter server's answers and the lab's come on stdout.
set -eu
checkout=$1 scratch=$2

mount -t proc proc /proc
ip link set lo up
for place in etc var; do
    mkdir -p "$scratch/$place/upper" "$scratch/$place/work"
    mount -t overlay -o "lowerdir=/$place,upperdir=$scratch/$place/upper,workdir=$scratch/$place/work" overlay "/$place"
done
mount -t tmpfs tmpfs /run

# libvirtd as Debian's libvirt-daemon-system would have it, but for what needs systemd: control groups, namespaces, a log daemon.
echo libvirt-qemu:x:64055:64055::/:/bin/false >>/etc/passwd
echo libvirt-qemu:x:64055: >>/etc/group
mkdir -p /etc/libvirt
cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
END
printf 'auth_unix_rw = "none"\nunix_sock_group = "root"\n' >/etc/libvirt/libvirtd.conf
libvirtd >"$scratch/libvirtd.log" 2>&1 &
patience=100
until [ -S /run/libvirt/libvirt-sock ]; do
    [ $((patience -= 1)) -gt 0 ] || { cat "$scratch/libvirtd.log" >&2; exit 1; }
    sleep 0.2
done

export HOME="$scratch" VAGRANT_HOME="$scratch/home" VAGRANT_DOTFILE_PATH="$scratch/dot" VAGRANT_CHECKPOINT_DISABLE=1 KERNEL_LAB_BOX=kernel-lab
cd "$checkout"
vagrant box add --name kernel-lab "$scratch/lab.box" >&2
rm "$scratch/lab.box"
vagrant up --provider=libvirt | tee "$scratch/up.log" >&2
address=$(grep -o 'http://127.0.0.1:8888/.*' "$scratch/up.log")
token=${address##*token=}
ask() { python3 -c 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())' "$1"; }
ask "http://127.0.0.1:8888/api/contents/labs/00_start.ipynb?content=0&token=$token"
ask "http://127.0.0.1:8888/api/contents?token=wrong" 2>&1 | tail -n 1
vagrant ssh -c 'cd /kernel_lab && stat -fc %T /sys/fs/cgroup && ./lab run 02 --json 2>/dev/null'
vagrant destroy -f >&2
