# A Slurm cluster of one node, this machine, for a test; sourced, not run. Needs root.
#   start_slurm FOLDER   munge, controller and node daemon with files in FOLDER; returns when the node is idle
#   stop_slurm           ends them
SLURM_FOLDER=""

start_slurm() {
  SLURM_FOLDER="$1"
  mkdir -p "$SLURM_FOLDER"/{state,spool,munge}
  local host cpus waited
  host="$(hostname -s)"
  cpus="$(nproc)"
  cat >"$SLURM_FOLDER/slurm.conf" <<CONFIG
ClusterName=dstest
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$SLURM_FOLDER/munge/socket
StateSaveLocation=$SLURM_FOLDER/state
SlurmdSpoolDir=$SLURM_FOLDER/spool
SlurmctldPidFile=$SLURM_FOLDER/slurmctld.pid
SlurmdPidFile=$SLURM_FOLDER/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
KillWait=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$((cpus < 4 ? 4 : cpus)) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
SlurmdParameters=config_overrides
CONFIG
  dd if=/dev/urandom of="$SLURM_FOLDER/munge/key" bs=1024 count=1 status=none
  chmod 700 "$SLURM_FOLDER/munge"
  chmod 400 "$SLURM_FOLDER/munge/key"
  munged --force --key-file="$SLURM_FOLDER/munge/key" --socket="$SLURM_FOLDER/munge/socket" \
    --log-file="$SLURM_FOLDER/munge/log" --pid-file="$SLURM_FOLDER/munge/pid" --seed-file="$SLURM_FOLDER/munge/seed"
  export SLURM_CONF="$SLURM_FOLDER/slurm.conf"
  slurmctld -f "$SLURM_CONF" -L "$SLURM_FOLDER/slurmctld.log"
  slurmd -f "$SLURM_CONF" -L "$SLURM_FOLDER/slurmd.log"
  for waited in $(seq 100); do
    [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && return 0
    sleep 0.2
  done
  sinfo
  tail -n 5 "$SLURM_FOLDER"/slurm*.log
  return 1
}

stop_slurm() {
  [ -n "$SLURM_FOLDER" ] || return 0
  local file
  for file in "$SLURM_FOLDER"/slurmd.pid "$SLURM_FOLDER"/slurmctld.pid "$SLURM_FOLDER"/munge/pid; do
    if [ -s "$file" ]; then kill "$(cat "$file")" 2>/dev/null; fi
  done
  SLURM_FOLDER=""
}
