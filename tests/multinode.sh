#!/usr/bin/env bash
# Runs over several machines, on this one: two hosts of tests/hosts/hosts.sh, with ssh servers, and the backends ssh, pdsh,
# Open MPI, MPICH and Slurm. Needs root, and a build (scripts/test.sh makes it). Installs what is missing.
# One run at a time: the hosts have fixed names. Prints one line per check and ends with "N passed, N failed"; exit status 0 only when all passed.
#   tests/multinode.sh [check...]    all checks, or those whose names are given
#   SKIP_TRAINING=1                  leaves the training runs out (they take most of the time)
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"
. "$ROOT/tests/hosts/hosts.sh"
. "$ROOT/tests/hosts/slurm.sh"
BUILD="$ROOT/build/release"
export PYTHONPATH="$BUILD/python" DEEPSCALE_PYTHON="$VENV/bin/python" PATH="$BUILD/bin:$PATH" OMP_NUM_THREADS=1
DEEPSPEED="$BUILD/bin/deepspeed"
[ "$(id -u)" -eq 0 ] || fail "network namespaces need root"
[ -x "$DEEPSPEED" ] || fail "there is no build in build/release: run scripts/test.sh first"
WORK="$(mktemp -d)"
chmod 755 "$WORK"
export DEEPSCALE_TEST_RUN="$WORK" # goes along to all ranks
cd "$WORK"
passed=0
failed=0

needs() {
  cat <<'NEEDS'
openssh-server|test -x /usr/sbin/sshd|ssh servers of the hosts
openssh-client|command -v ssh|launcher ssh
pdsh|command -v pdsh|launcher pdsh
iproute2|command -v ip|network of the hosts
openmpi-bin|command -v mpirun.openmpi|launcher openmpi
mpich|command -v mpirun.mpich|launcher mpich
slurm-wlm|command -v slurmctld|launcher slurm
munge|command -v munged|Slurm's authentication
procps|command -v pgrep|looking at processes
NEEDS
}

prepare() {
  local package test reason missing=()
  while IFS='|' read -r package test reason; do
    $test >/dev/null 2>&1 || missing+=("$package")
  done < <(needs)
  [ ${#missing[@]} -eq 0 ] || { say "   installing: ${missing[*]}"; install_with_apt "${missing[@]}"; }
}

finish() {
  stop_slurm
  remove_hosts 2>/dev/null
  rm -rf "$WORK"
}
trap finish EXIT

# check NAME COMMAND...: counts it and shows its output when it fails.
only=("$@")
check() {
  local name="$1" begin=$SECONDS
  shift
  [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $name "* ]] || return 0
  # Not as a condition: `set -e` has no effect inside one.
  (set -e; "$@") >"$WORK/check.log" 2>&1
  if [ $? -eq 0 ]; then
    passed=$((passed + 1))
    printf 'ok      %-28s %3d s\n' "$name" $((SECONDS - begin))
  else
    failed=$((failed + 1))
    printf 'FAILED  %-28s %3d s\n' "$name" $((SECONDS - begin))
    tail -n 40 "$WORK/check.log" | sed 's/^/        /'
  fi
}

# launch NODE ARGUMENTS...: the launcher on a host; output in out, code in $code, seconds in $took.
launch() {
  local node="$1" begin
  shift
  begin=$(date +%s%N)
  code=0
  on_host "$node" timeout 300 "$DEEPSPEED" "$@" >out 2>&1 || code=$?
  took=$((($(date +%s%N) - begin) / 1000000))
  cat out
  echo "exit code $code after $took ms"
}

by_ssh=(--launcher ssh --launcher_args "-F $WORK/hosts/ssh_config")
has() { grep -qF -- "$1" out || { echo "missing: $1"; return 1; }; }
has_not() { ! grep -qF -- "$1" out || { echo "unexpected: $1"; return 1; }; }
is() { [ "$1" -eq "$2" ] || { echo "expected $2, found $1"; return 1; }; }
at_most() { [ "$1" -le "$2" ] || { echo "expected at most $2, found $1"; return 1; }; }
# Processes of the run on host N: agents by their command line, everything else by a variable that all ranks inherit.
of_the_run() { on_host "$1" env -u DEEPSCALE_TEST_RUN sh "$WORK/find_run" "$WORK"; }
something_runs() {
  local node
  for node in 1 2; do
    [ -n "$(of_the_run $node)" ] || { echo "nothing of the run is found on host $node"; return 1; }
  done
}
nothing_left() {
  local node waited
  for node in 1 2; do
    for waited in $(seq 20); do
      [ -z "$(of_the_run $node)" ] && continue 2
      sleep 0.1
    done
    echo "left on host $node:"
    of_the_run $node
    return 1
  done
}

write_files() {
  cat >find_run <<'SCRIPT'
for folder in /proc/[0-9]*; do
  command="$(tr '\0' ' ' <"$folder/cmdline" 2>/dev/null)"
  [ -n "$command" ] || continue # a zombie
  if grep -qzx "DEEPSCALE_TEST_RUN=$1" "$folder/environ" 2>/dev/null || echo "$command" | grep -q ' [-]-agent '; then
    echo "${folder#/proc/} $command"
  fi
done
SCRIPT
  printf 'node1 slots=2\nnode2 slots=2\n' >both
  printf 'node2 slots=2\nnode1 slots=1\n' >reversed
  cat >show.sh <<'SCRIPT'
#!/bin/sh
echo "rank $RANK of $WORLD_SIZE on $(hostname), local $LOCAL_RANK of $LOCAL_SIZE, machine $CROSS_RANK of $CROSS_SIZE, at $MASTER_ADDR, devices $CUDA_VISIBLE_DEVICES, mine=$MINE ($*)"
SCRIPT
  cat >fail.sh <<'SCRIPT'
#!/bin/sh
[ "$RANK" = 2 ] || exec sleep 100
sleep 0.5
echo "the reason" >&2
exit 7
SCRIPT
  cat >forever.sh <<'SCRIPT'
#!/bin/sh
touch "started$RANK"
exec sleep 1000
SCRIPT
  cat >elastic.sh <<'SCRIPT'
#!/bin/sh
echo "attempt $DEEPSPEED_RESTART_COUNT: rank $RANK of $WORLD_SIZE"
touch "attempt$DEEPSPEED_RESTART_COUNT"
[ "$DEEPSPEED_RESTART_COUNT" = 0 ] || exit 0
exec sleep 1000
SCRIPT
  chmod +x ./*.sh
}

ssh_places_ranks() {
  echo 'MINE="a b"' >.deepspeed_env
  launch 1 -H both "${by_ssh[@]}" --no_python "$WORK/show.sh" 'x  y' '$HOME;"'
  is "$code" 0
  has "rank 0 of 4 on node1, local 0 of 2, machine 0 of 2, at 10.213.77.1, devices 0,1, mine=a b (--local_rank=0 x  y \$HOME;\")"
  has "rank 3 of 4 on node2, local 1 of 2, machine 1 of 2, at 10.213.77.1, devices 0,1, mine=a b (--local_rank=1 x  y \$HOME;\")"
  nothing_left
}

master_is_the_first_host() {
  launch 1 -H reversed "${by_ssh[@]}" --no_python "$WORK/show.sh"
  is "$code" 0
  has "rank 1 of 3 on node2, local 1 of 2, machine 0 of 2, at 10.213.77.2"
  has "rank 2 of 3 on node1, local 0 of 1, machine 1 of 2, at 10.213.77.2"
}

pdsh_places_ranks() {
  PDSH_SSH_ARGS_APPEND="-F $WORK/hosts/ssh_config" launch 1 -H reversed --launcher pdsh --no_python "$WORK/show.sh" 'x  y'
  is "$code" 0
  has "node2: rank 1 of 3 on node2, local 1 of 2, machine 0 of 2, at 10.213.77.2"
  has "node1: rank 2 of 3 on node1, local 0 of 1, machine 1 of 2, at 10.213.77.2"
  has "(--local_rank=0 x  y)"
}

filters() {
  launch 1 -H both "${by_ssh[@]}" --include node2:1 --no_python "$WORK/show.sh"
  is "$code" 0
  has "rank 0 of 1 on node2, local 0 of 1, machine 0 of 1, at 10.213.77.2, devices 1"
  launch 1 -H both "${by_ssh[@]}" --exclude node1:0 --no_python "$WORK/show.sh"
  is "$code" 0
  has "rank 0 of 3 on node1, local 0 of 1"
  has "devices 1,"
  has "rank 2 of 3 on node2"
  launch 1 -H both "${by_ssh[@]}" --num_nodes 1 --num_gpus 1 --no_python "$WORK/show.sh"
  is "$code" 0
  has "rank 0 of 1 on node1"
  launch 1 -H both "${by_ssh[@]}" --include node3 --no_python "$WORK/show.sh"
  is "$code" 2
  has 'unknown host "node3"'
  has_not "rank 0"
}

by_hand() {
  local options=(--no_ssh --master_addr 10.213.77.1 -H both --no_python "$WORK/show.sh")
  launch 2 --node_rank 1 "${options[@]}"
  is "$code" 0
  has "rank 2 of 4 on node2, local 0 of 2, machine 1 of 2, at 10.213.77.1"
}

failing_rank_is_named() {
  launch 1 -H both "${by_ssh[@]}" --no_python "$WORK/fail.sh"
  is "$code" 7
  has "rank 2 (local rank 0"
  has "on host node2 failed: exit code 7"
  has "[rank 2] the reason"
  nothing_left
}

logs_of_both_hosts() {
  launch 1 -H both "${by_ssh[@]}" --log_dir logs --no_python "$WORK/fail.sh"
  is "$code" 7
  has "last lines of logs/"
  is "$(ls logs | wc -l)" 4
  grep -q "the reason" logs/*_rank2.log
}

unreachable_hosts_are_named() {
  printf 'node1 slots=1\nnowhere.invalid slots=1\n' >unknown
  launch 1 -H unknown "${by_ssh[@]}" --no_python "$WORK/forever.sh"
  is "$code" 1
  has "host nowhere.invalid cannot be used"
  nothing_left
  launch 1 -H both "${by_ssh[@]}" --ssh_port 9 --no_python "$WORK/forever.sh"
  is "$code" 1
  has "host node2 cannot be used: ssh ended with exit code 255"
  nothing_left
  mv hosts/client_key hosts/hidden
  launch 1 -H both "${by_ssh[@]}" --no_python "$WORK/forever.sh"
  mv hosts/hidden hosts/client_key
  is "$code" 1
  has "Permission denied"
  nothing_left
  [ ! -e started0 ]
}

agents_problems_are_named() {
  launch 1 -H both "${by_ssh[@]}" --no_python --log_dir /proc/nothing "$WORK/show.sh"
  is "$code" 1
  has "cannot make the log directory /proc/nothing"
  nothing_left
  # A directory that only one of the hosts has.
  on_host 1 mount -t tmpfs tmpfs /mnt
  on_host 1 mkdir /mnt/here
  code=0
  on_host 1 sh -c "cd /mnt/here && exec '$DEEPSPEED' -H '$WORK/both' --launcher ssh --launcher_args '-F $WORK/hosts/ssh_config' --no_python '$WORK/show.sh'" >out 2>&1 || code=$?
  cat out
  is "$code" 1
  has "the directory /mnt/here of the launcher cannot be entered on host node2"
  has_not "rank 0 of"
  on_host 1 umount /mnt
  nothing_left
}

interrupt_ends_both_hosts() {
  rm -f started*
  on_host 1 "$DEEPSPEED" -H both "${by_ssh[@]}" --no_python "$WORK/forever.sh" >out 2>&1 &
  local waited begin launcher
  for waited in $(seq 100); do [ -e started0 ] && [ -e started3 ] && break; sleep 0.1; done
  something_runs
  launcher=$(pgrep -f "^$DEEPSPEED -H both" | head -n 1)
  begin=$(date +%s%N)
  kill -INT "$launcher"
  code=0
  wait $! || code=$?
  took=$((($(date +%s%N) - begin) / 1000000))
  cat out
  is "$code" 130
  at_most "$took" 2000
  nothing_left
}

killed_launcher_ends_both_hosts() {
  rm -f started*
  on_host 1 "$DEEPSPEED" -H both "${by_ssh[@]}" --no_python "$WORK/forever.sh" >out 2>&1 &
  local waited
  for waited in $(seq 100); do [ -e started0 ] && [ -e started3 ] && break; sleep 0.1; done
  something_runs
  pkill -KILL -f "^$DEEPSPEED -H both"
  wait $! || true
  sleep 1
  nothing_left
}

cut_host_is_named() {
  rm -f started*
  on_host 1 env DEEPSCALE_HOST_TIMEOUT_S=4 "$DEEPSPEED" -H both "${by_ssh[@]}" --no_python "$WORK/forever.sh" >out 2>&1 &
  local waited begin
  for waited in $(seq 100); do [ -e started0 ] && [ -e started3 ] && break; sleep 0.1; done
  something_runs
  begin=$(date +%s%N)
  cut_host 2
  code=0
  wait $! || code=$?
  took=$((($(date +%s%N) - begin) / 1000000))
  cat out
  sleep 3
  nothing_left # also on the host that was cut off
  join_host 2
  is "$code" 1
  at_most "$took" 8000
  has "host node2 is lost"
}

elastic_restart() {
  rm -f attempt*
  on_host 1 env DEEPSCALE_HOST_TIMEOUT_S=4 "$DEEPSPEED" -H both "${by_ssh[@]}" --elastic_training --no_python "$WORK/elastic.sh" >out 2>&1 &
  local waited
  for waited in $(seq 100); do [ -e attempt0 ] && grep -q "rank 3 of 4" out && break; sleep 0.1; done
  cut_host 2
  code=0
  wait $! || code=$?
  cat out
  join_host 2
  is "$code" 0
  has "host node2 is lost"
  has "restart 1 of 100: 2 ranks on 1 machines"
  has "attempt 1: rank 1 of 2"
}

gpt=("$ROOT/examples/gpt/train.py" --deepspeed --deepspeed_config "$ROOT/examples/gpt/ds_config_zero2.json" --n_layer 2 --d_model 64
  --n_head 2 --block_size 64 --vocab_size 1024 --data "$ROOT/docs" --cache_dir "$WORK/cache" --eval_windows 8 --sample_tokens 0 --save_interval -1)

training_by_ssh() {
  launch 1 -H both "${by_ssh[@]}" "${gpt[@]}" --max_steps 20 --eval_interval 10 --output_dir "$WORK/ssh"
  is "$code" 0
  has "4 rank(s), ZeRO stage 2"
  loss_falls "$WORK/ssh/metrics.jsonl"
  nothing_left
}

training_by_pdsh() {
  PDSH_SSH_ARGS_APPEND="-F $WORK/hosts/ssh_config" launch 1 -H both --launcher pdsh "${gpt[@]}" --max_steps 20 --eval_interval 10 --output_dir "$WORK/pdsh"
  is "$code" 0
  has "4 rank(s), ZeRO stage 2"
  loss_falls "$WORK/pdsh/metrics.jsonl"
  nothing_left
}

training_by_torchrun() {
  local options=(--nnodes 2 --nproc_per_node 1 --master_addr 10.213.77.1 --master_port 29555 "${gpt[@]}" --max_steps 10 --eval_interval 10 --output_dir "$WORK/torchrun")
  on_host 2 env GLOO_SOCKET_IFNAME=eth0 timeout 300 "$VENV/bin/torchrun" --node_rank 1 "${options[@]}" >out2 2>&1 &
  code=0
  on_host 1 env GLOO_SOCKET_IFNAME=eth0 timeout 300 "$VENV/bin/torchrun" --node_rank 0 "${options[@]}" >out 2>&1 || code=$?
  cat out
  wait $! || { cat out2; return 1; }
  is "$code" 0
  has "2 rank(s), ZeRO stage 2"
}

training_host_is_cut() {
  on_host 1 env DEEPSCALE_HOST_TIMEOUT_S=4 timeout 300 "$DEEPSPEED" -H both "${by_ssh[@]}" "${gpt[@]}" --max_steps 100000 --eval_interval 100000 --output_dir "$WORK/cut" >out 2>&1 &
  local waited begin
  for waited in $(seq 1200); do grep -q '"step": *5[,}]' "$WORK/cut/metrics.jsonl" 2>/dev/null && break; sleep 0.1; done
  something_runs
  begin=$(date +%s%N)
  cut_host 2
  code=0
  wait $! || code=$?
  took=$((($(date +%s%N) - begin) / 1000000))
  cat out
  sleep 3
  nothing_left
  join_host 2
  echo "ended after $took ms with code $code"
  is "$code" 1
  at_most "$took" 8000
  has "host node2 is lost"
}

# First and last evaluation of a training run.
loss_falls() {
  "$VENV/bin/python" - "$1" <<'SCRIPT'
import json, sys
losses = [record["eval_loss"] for record in map(json.loads, open(sys.argv[1])) if "eval_loss" in record]
print("evaluation losses", losses)
sys.exit(not (len(losses) > 1 and losses[-1] < losses[0] - 0.05))
SCRIPT
}

openmpi_places_ranks() {
  launch 1 -H both --launcher openmpi --launcher_args "--allow-run-as-root --mca plm_rsh_args '-F $WORK/hosts/ssh_config' --mca oob_tcp_if_include eth0" --no_python "$WORK/show.sh" 'x  y'
  is "$code" 0
  has "rank 0 of 4 on node1, local 0 of 2, machine 0 of 2, at 10.213.77.1"
  has "rank 3 of 4 on node2, local 1 of 2, machine 1 of 2"
  has "mine=a b (--local_rank=1 x  y)"
  launch 1 -H both --launcher openmpi --launcher_args "--allow-run-as-root --mca plm_rsh_args '-F $WORK/hosts/ssh_config' --mca oob_tcp_if_include eth0" --no_python "$WORK/fail.sh"
  is "$code" 7
  has "rank 2 (local rank 0"
  has "on host node2 failed: exit code 7"
  nothing_left
}

mpich_places_ranks() {
  printf '#!/bin/sh\nexec ssh -F %s "$@"\n' "$WORK/hosts/ssh_config" >ssh_wrapper
  chmod +x ssh_wrapper
  launch 1 -H both --launcher mpich --launcher_args "-launcher ssh -launcher-exec $WORK/ssh_wrapper -iface eth0" --no_python "$WORK/show.sh"
  is "$code" 0
  has "rank 0 of 4 on node1, local 0 of 2, machine 0 of 2, at 10.213.77.1"
  has "rank 3 of 4 on node2, local 1 of 2, machine 1 of 2"
  launch 1 -H both --launcher mpich --launcher_args "-launcher ssh -launcher-exec $WORK/ssh_wrapper -iface eth0" --no_python "$WORK/fail.sh"
  is "$code" 7
  has "on host node2 failed: exit code 7"
  nothing_left
}

slurm_places_ranks() {
  start_slurm "$WORK/slurm"
  export SLURM_CONF="$WORK/slurm/slurm.conf"
  code=0
  DS_ACCELERATOR=cpu timeout 120 "$DEEPSPEED" --launcher slurm --num_nodes 1 --num_gpus 2 --no_python "$WORK/show.sh" >out 2>&1 || code=$?
  cat out
  is "$code" 0
  has "rank 0 of 2 on"
  has "local 1 of 2, machine 0 of 1"
  code=0
  DS_ACCELERATOR=cpu timeout 120 "$DEEPSPEED" --launcher slurm --num_nodes 1 --num_gpus 3 --no_python "$WORK/fail.sh" >out 2>&1 || code=$?
  cat out
  is "$code" 7
  has "rank 2 (local rank 2"
  has "failed: exit code 7"
  stop_slurm
}

cd "$ROOT"
prepare
cd "$WORK"
write_files
SLURM_FOLDER="$WORK/slurm"
make_hosts "$WORK/hosts" 2
set +e
for name in ssh_places_ranks master_is_the_first_host pdsh_places_ranks filters by_hand failing_rank_is_named logs_of_both_hosts \
  unreachable_hosts_are_named agents_problems_are_named interrupt_ends_both_hosts killed_launcher_ends_both_hosts cut_host_is_named \
  elastic_restart openmpi_places_ranks mpich_places_ranks slurm_places_ranks; do
  check $name $name
done
if [ -z "${SKIP_TRAINING:-}" ]; then
  for name in training_by_ssh training_by_pdsh training_by_torchrun training_host_is_cut; do check $name $name; done
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
