# Hosts for tests of launches over several machines, on this one; sourced, not run. A host is a set of namespaces of its
# own (network, processes, host name, mounts with its own /dev/shm) with an ssh server on its address. Needs root.
#   make_hosts FOLDER COUNT   hosts 10.213.77.1 ... named node1 ..., files in FOLDER; ends what an earlier run left
#   on_host N COMMAND...      runs a command on host N
#   cut_host N / join_host N  takes the host's network cable out and puts it back
#   remove_hosts              ends everything on them
# FOLDER/ssh_config is for `ssh -F`: key, known hosts and user of these servers.
HOSTS_NET=10.213.77
HOSTS_BRIDGE=dshosts0
HOSTS_FOLDER=""
HOSTS_COUNT=0

host_address() { echo "$HOSTS_NET.$1"; }

host_process() { cat "$HOSTS_FOLDER/node$1.pid"; }

on_host() {
  local number="$1"
  shift
  nsenter --target "$(host_process "$number")" --mount --uts --net --pid --wd="$PWD" -- "$@"
}

ssh_files() {
  ssh-keygen -q -t ed25519 -N '' -f "$HOSTS_FOLDER/client_key"
  ssh-keygen -q -t ed25519 -N '' -f "$HOSTS_FOLDER/host_key"
  cp "$HOSTS_FOLDER/client_key.pub" "$HOSTS_FOLDER/authorized_keys"
  local number
  for number in $(seq "$HOSTS_COUNT"); do
    echo "$(host_address "$number"),node$number $(cut -d' ' -f1,2 "$HOSTS_FOLDER/host_key.pub")"
  done >"$HOSTS_FOLDER/known_hosts"
  cat >"$HOSTS_FOLDER/ssh_config" <<CONFIG
Host *
  User root
  IdentityFile $HOSTS_FOLDER/client_key
  IdentitiesOnly yes
  UserKnownHostsFile $HOSTS_FOLDER/known_hosts
  StrictHostKeyChecking yes
  LogLevel ERROR
CONFIG
  cat >"$HOSTS_FOLDER/sshd_config" <<CONFIG
HostKey $HOSTS_FOLDER/host_key
AuthorizedKeysFile $HOSTS_FOLDER/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
CONFIG
}

# Runs inside the new namespaces as their first process.
host_main() {
  hostname "node$1"
  mount -t tmpfs tmpfs /dev/shm
  mkdir -p /run/sshd
  mount --bind "$HOSTS_FOLDER/hosts" /etc/hosts
  touch "$HOSTS_FOLDER/node$1.ready"
  exec /usr/sbin/sshd -D -e -f "$HOSTS_FOLDER/sshd_config"
}

make_host() {
  local number="$1"
  ip netns add "dsnode$number"
  ip link add "dsv$number" type veth peer name eth0 netns "dsnode$number"
  ip link set "dsv$number" master "$HOSTS_BRIDGE" up
  ip -n "dsnode$number" address add "$(host_address "$number")/24" dev eth0
  ip -n "dsnode$number" link set eth0 up
  ip -n "dsnode$number" link set lo up
  export HOSTS_FOLDER
  export -f host_main
  ip netns exec "dsnode$number" unshare --mount --uts --pid --fork --kill-child --mount-proc \
    bash -c "host_main $number" >"$HOSTS_FOLDER/node$number.log" 2>&1 &
  local holder=$! waited
  for waited in $(seq 100); do
    [ -e "$HOSTS_FOLDER/node$number.ready" ] && break
    sleep 0.1
  done
  [ -e "$HOSTS_FOLDER/node$number.ready" ] || { cat "$HOSTS_FOLDER/node$number.log" >&2; return 1; }
  # unshare's child is the first process of the host.
  cat "/proc/$holder/task/$holder/children" | tr -d ' ' >"$HOSTS_FOLDER/node$number.pid"
}

make_hosts() {
  HOSTS_FOLDER="$1"
  HOSTS_COUNT="$2"
  remove_hosts
  mkdir -p "$HOSTS_FOLDER"
  ssh_files
  { echo "127.0.0.1 localhost"; for number in $(seq "$HOSTS_COUNT"); do echo "$(host_address "$number") node$number"; done; } >"$HOSTS_FOLDER/hosts"
  ip link add "$HOSTS_BRIDGE" type bridge
  ip link set "$HOSTS_BRIDGE" up
  local number
  for number in $(seq "$HOSTS_COUNT"); do make_host "$number" || return; done
}

cut_host() { ip link set "dsv$1" down; }
join_host() { ip link set "dsv$1" up; }

remove_hosts() {
  local number name
  for name in $(ip netns list 2>/dev/null | awk '/^dsnode/ {print $1}'); do
    for number in $(ip netns pids "$name"); do kill -9 "$number" 2>/dev/null || true; done
    ip netns delete "$name" 2>/dev/null || true
  done
  ip link delete "$HOSTS_BRIDGE" 2>/dev/null || true
}
