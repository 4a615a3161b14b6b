#!/usr/bin/env bash
# cluster.sh DIRECTORY NODES: process 1 of a private SLURM cluster, in namespaces of its own (cluster.py starts it).
# It lives until its standard input closes; then the kernel kills everything else in its process namespace.
set -euo pipefail
directory=$1
nodes=$2
cd "$directory"

hostname ctl
mount --bind "$directory/hosts" /etc/hosts
for gpu in "$directory"/gpu*; do
    [[ ! -e $gpu ]] || mount --bind /dev/null "$gpu" # slurmd wants a character device for each GPU; nobody opens it
done

ip link set lo up
ip link add bridge0 type bridge forward_delay 0
ip address add 10.77.0.254/24 dev bridge0
ip link set bridge0 up

start_node() {
    local number=$1 namespace=$directory/net.n$1
    touch "$namespace"
    unshare --net="$namespace" ip link set lo up
    ip link add "veth$number" type veth peer name eth0 netns "$namespace"
    ip link set "veth$number" master bridge0 up
    nsenter --net="$namespace" ip address add "10.77.0.$number/24" dev eth0
    nsenter --net="$namespace" ip link set eth0 up
    # bash stays process 1 of the node: it reaps the orphans of jobs, slurmd would not
    # shellcheck disable=SC2016 # the inner shell expands it
    nsenter --net="$namespace" unshare --mount --uts --pid --fork --kill-child --mount-proc bash -c \
        'hostname "$0"; slurmd -D -N "$0" & wait' "n$number" </dev/null >"log/n$number.out" 2>&1 &
    echo $! >"n$number.pid"
}

mungekey --create --keyfile="$directory/munge/key"
munged --foreground --force --num-threads=2 --key-file="$directory/munge/key" --socket="$directory/munge/socket" \
    --pid-file="$directory/munge/pid" --seed-file="$directory/munge/seed" </dev/null >log/munged.out 2>&1 &
until [[ -S munge/socket ]]; do sleep 0.02; done
slurmctld -D -c </dev/null >log/slurmctld.out 2>&1 &
until scontrol ping >/dev/null 2>&1; do sleep 0.05; done # a slurmd that comes earlier waits a second before it retries
for number in $(seq "$nodes"); do start_node "$number"; done

read -r || true
