#!/bin/bash
# A real Slurm cluster on one Debian machine: four nodes n1..n4, accounting, stand-in GPUs.
#
#   slurm/onehost.sh up       install what is missing (apt), configure, start; again is fine, after a crash too
#   slurm/onehost.sh down     end running jobs and all daemons; queue, accounting and job ids stay for the next up
#   slurm/onehost.sh status   what runs, and how memory limits are enforced; exit code 1 when not all of it runs
#   slurm/onehost.sh clean    down, and remove all state; the packages stay
#
# ONEHOST_DIR     where everything lies (/var/tmp/scalebench-onehost), but for four files in /etc/slurm while it is up
# ONEHOST_PORT    first of seven ports (17000)
# ONEHOST_MEMORY  auto, or polling: do not use cgroups even where they would work
#
# No systemd is needed. Partitions: cpu (the default), gpu, and down, which takes jobs and never starts them.
set -euo pipefail

DIR=${ONEHOST_DIR:-/var/tmp/scalebench-onehost}
PORT=${ONEHOST_PORT:-17000}
MEMORY=${ONEHOST_MEMORY:-auto}
ETC=/etc/slurm
NODES=(n1 n2 n3 n4)
SLURMDS=("${NODES[@]/#/slurmd.}")
DAEMONS=(munged mariadbd slurmdbd slurmctld "${SLURMDS[@]}") # in the order they start; they stop in reverse
declare -A PORT_OF=([slurmctld]=$PORT [slurmd.n1]=$((PORT + 1)) [slurmd.n2]=$((PORT + 2)) [slurmd.n3]=$((PORT + 3))
  [slurmd.n4]=$((PORT + 4)) [slurmdbd]=$((PORT + 5)) [mariadbd]=$((PORT + 6)))
MARK="# scalebench one-host cluster in $DIR"
PACKAGES=(slurmctld slurmd slurmdbd slurm-client slurm-wlm-mysql-plugin munge mariadb-server-core mariadb-client-core)
export SLURM_CONF=$ETC/slurm.conf PATH=$PATH:/usr/sbin:/sbin

refuse() { echo "error: $1" >&2; exit 2; }
fail() { echo "error: $1" >&2; exit 1; }

wait_for() { # seconds, what, command...
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "waited in vain for $what; see $DIR/log"
    sleep 0.1
  done
}

# ---- processes: a daemon is ours if its pid file names a process that was started through our own link to the program

pid_of() { # daemon; prints its pid if it runs
  local pid command
  pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) && [[ $pid =~ ^[0-9]+$ ]] || return 1
  # A zombie's command line is empty: it has stopped.
  command=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") && [[ $command == "$DIR/bin/$1/"* ]] && echo "$pid"
}

running() { pid_of "$1" >/dev/null; }
stopped() { ! running "$1"; }
any_running() { local d; for d in "${DAEMONS[@]}"; do ! running "$d" || return 0; done; return 1; }

launch() { # daemon, arguments...: in the background, with nothing of this shell's or make's environment
  local daemon=$1 program=${1%.n*} # Slurm's programs look at their own name, so the link has it
  shift
  mkdir -p "$DIR/bin/$daemon" && ln -sfn "$(command -v "$program")" "$DIR/bin/$daemon/$program"
  env -i PATH="$PATH" SLURM_CONF="$SLURM_CONF" setsid "$DIR/bin/$daemon/$program" "$@" </dev/null >>"$DIR/log/$daemon.out" 2>&1 &
}

stop() { # daemons...: all at once, then wait for each
  local daemon pid
  for daemon in "$@"; do
    if pid=$(pid_of "$daemon"); then kill "$pid" 2>/dev/null || true; fi
  done
  for daemon in "$@"; do
    wait_for 60 "$daemon to stop" stopped "$daemon"
    rm -f "$DIR/run/$daemon.pid"
  done
}

# Steps outlive their slurmd. A step writes into its slurmd's log: that is how to tell ours from another Slurm's.
steps_left() {
  local process
  for process in $(grep -lxs slurmstepd /proc/[0-9]*/comm); do
    readlink "${process%/comm}"/fd/* 2>/dev/null | grep -qF "$DIR/log/slurmd." && return 0
  done
  return 1
}

# ---- what must be true before anything is changed

check_machine() {
  ((EUID == 0)) || refuse "the one-host cluster needs root: try it with sudo"
  [[ $DIR =~ ^/[A-Za-z0-9._/-]+$ ]] || refuse "ONEHOST_DIR=$DIR: an absolute path of letters, digits and ._-/ is needed"
  [[ $MEMORY == auto || $MEMORY == polling ]] || refuse "ONEHOST_MEMORY=$MEMORY: allowed are auto, polling"
  command -v apt-get >/dev/null || refuse "the one-host cluster needs Debian or a relative of it: no apt-get here"
}

check_configuration_is_ours() {
  local file
  for file in "$ETC"/{slurm,slurmdbd,gres,cgroup}.conf; do
    [[ ! -e $file || $(head -n 1 "$file") == "$MARK" ]] ||
      refuse "$file belongs to another Slurm (its first line is not '$MARK'): it is left as it is"
  done
}

check_ports() {
  local daemon port
  for daemon in "${!PORT_OF[@]}"; do
    port=${PORT_OF[$daemon]}
    if stopped "$daemon" && cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
      awk -v port="$(printf ':%04X' "$port")" '$4 == "0A" && $2 ~ port "$" {found = 1} END {exit !found}'; then
      refuse "port $port, for $daemon, is taken by another program: free it, or set ONEHOST_PORT"
    fi
  done
}

install_packages() {
  local program absent=()
  for program in slurmctld slurmd slurmdbd sbatch munged mariadbd mariadb mariadb-install-db; do
    command -v "$program" >/dev/null || absent+=("$program")
  done
  ((${#absent[@]})) || return 0
  echo "installing with apt-get: ${PACKAGES[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}"; } \
    >"$DIR/log/apt.log" 2>&1 </dev/null || fail "apt-get did not install them; see $DIR/log/apt.log"
}

# ---- configuration

# cgroup v1 ends what exceeds its memory as OUT_OF_MEMORY, at once, and sends signals to the task only. Slurm 22.05's
# cgroup v2 wants one slurmd to a machine and systemd to share the tree with; so without v1, Slurm polls.
memory_cgroups_work() {
  local controller probe
  [[ $MEMORY == auto ]] || return 1
  for controller in memory freezer; do
    probe=/sys/fs/cgroup/$controller/scalebench_probe
    { mkdir -p "$probe" && [[ -e $probe/cgroup.procs ]] && rmdir "$probe"; } 2>/dev/null || return 1
  done
}

memory_enforcement() {
  if grep -qs '^TaskPlugin=task/cgroup' "$SLURM_CONF"; then
    echo "cgroup v1 (a job over its memory limit ends as OUT_OF_MEMORY)"
  else
    echo "polling every 2 s (a job over its memory limit is killed and ends as FAILED; a short peak is missed)"
  fi
}

first_job_id() { # of a new cluster: not 1, since submitit keys its folders by job id, and those outlive a `clean`
  [[ -s $DIR/first_job_id ]] || echo $((($(date +%s) - 1767225600) % 66000000)) >"$DIR/first_job_id" # s since 2026; below MaxJobId
  cat "$DIR/first_job_id"
}

slurm_conf() {
  local host node memory_mb enforcement=$'ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup'
  host=$(hostname -s)
  memory_mb=$(awk -v nodes="${#NODES[@]}" '/^MemTotal/ {print int($2 / 1024 * 0.9 / nodes)}' /proc/meminfo)
  if ! memory_cgroups_work; then
    enforcement=$'ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherParams=OverMemoryKill'
  fi
  # cred_expire: a requeued job waits for its old credential to expire, 120 s by default.
  # config_overrides: nodes of 4 CPUs whatever the machine has. FirstJobId: see first_job_id.
  cat <<CONF
$MARK
ClusterName=onehost
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${PORT_OF[slurmctld]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.socket,cred_expire=10
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool.%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
$enforcement
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,bf_interval=5
ReturnToService=2
KillWait=5
MaxArraySize=10001
MaxJobCount=20000
FirstJobId=$(first_job_id)
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=${PORT_OF[slurmdbd]}
AccountingStoragePass=$DIR/run/munge.socket
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
DefMemPerCPU=$((memory_mb / 4))
CONF
  for node in "${NODES[@]}"; do
    echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=${PORT_OF[slurmd.$node]} CPUs=4 RealMemory=$memory_mb Gres=gpu:1"
  done
  printf 'PartitionName=%s Nodes=n[1-4] MaxTime=1-0 %s\n' cpu 'Default=YES State=UP' gpu State=UP down State=DOWN
}

slurmdbd_conf() {
  cat <<CONF
$MARK
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=${PORT_OF[slurmdbd]}
SlurmUser=root
PidFile=$DIR/run/slurmdbd.pid
LogFile=$DIR/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=${PORT_OF[mariadbd]}
StorageUser=slurm
StoragePass=$(cat "$DIR/secret/database")
CONF
}

configure() {
  local node device
  [[ -s $DIR/secret/munge ]] || (umask 077 && head -c 128 /dev/urandom >"$DIR/secret/munge")
  [[ -s $DIR/secret/database ]] || (umask 077 && head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$DIR/secret/database")
  mkdir -p "$ETC"
  slurm_conf >"$SLURM_CONF"
  (umask 077 && slurmdbd_conf >"$ETC/slurmdbd.conf") # slurmdbd wants it so: it holds a password
  printf '%s\n' "$MARK" CgroupPlugin=cgroup/v1 CgroupAutomount=no ConstrainRAMSpace=yes >"$ETC/cgroup.conf"
  echo "$MARK" >"$ETC/gres.conf"
  for node in "${NODES[@]}"; do
    # Slurm sets CUDA_VISIBLE_DEVICES only for character devices: a second /dev/null passes for one.
    device=$DIR/gpu/$node/nvidia0
    mkdir -p "${device%/*}" "$DIR/spool.$node"
    [[ -c $device ]] || mknod -m 666 "$device" c 1 3 || fail "mknod is not permitted here, so there are no stand-in GPUs"
    echo "NodeName=$node Name=gpu File=$device" >>"$ETC/gres.conf"
  done
}

forget_names() { # rewritten in place: in a container /etc/hosts is a mount, which cannot be replaced
  local kept
  kept=$(grep -vF "$MARK" /etc/hosts || true)
  printf '%s\n' "$kept" >/etc/hosts
}

# ---- start and stop

database() { mariadb --no-defaults --socket="$DIR/run/mariadbd.socket" --user=root "$@"; }

start_database() {
  # The directory is renamed when complete, so that an interrupted installation is done again.
  if [[ ! -d $DIR/database ]]; then
    rm -rf "$DIR/database.new"
    mariadb-install-db --no-defaults --user=root --datadir="$DIR/database.new" --skip-test-db \
      >"$DIR/log/mariadb-install.log" 2>&1 || fail "no database; see $DIR/log/mariadb-install.log"
    chmod 700 "$DIR/database.new" && mv "$DIR/database.new" "$DIR/database"
  fi
  launch mariadbd --no-defaults --user=root --datadir="$DIR/database" --socket="$DIR/run/mariadbd.socket" \
    --pid-file="$DIR/run/mariadbd.pid" --bind-address=127.0.0.1 --port="${PORT_OF[mariadbd]}" --skip-name-resolve \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=2
  wait_for 60 mariadbd database -e 'select 1'
  database -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db; CREATE USER IF NOT EXISTS slurm@127.0.0.1;
    ALTER USER slurm@127.0.0.1 IDENTIFIED BY '$(cat "$DIR/secret/database")'; GRANT ALL ON slurm_acct_db.* TO slurm@127.0.0.1"
}

end_jobs() { # running ones: they would outlive the daemons; pending ones stay in the queue
  if steps_left && ! { running slurmctld && running slurmdbd; }; then
    echo "jobs are left over from a crash: starting the daemons to end them"
    start_daemons
  fi
  if running slurmctld; then
    set_partitions DOWN # else a pending job starts wherever one has just ended
    wait_for 60 "running jobs to end" no_jobs_run
  fi
}

set_partitions() { local name; for name in cpu gpu; do scontrol update "PartitionName=$name" "State=$1"; done; }
no_jobs_run() { # which asks them to end, too: a start that was under way may not be seen the first time
  scancel --quiet --state=running 2>/dev/null || true
  scancel --quiet --state=suspended 2>/dev/null || true
  [[ -z $(squeue --noheader --states=running,suspended,completing) ]] && ! steps_left
}
slurmctld_answers() { scontrol ping | grep -q 'is UP'; }
nodes_answer() { [[ $(sinfo --noheader --responding --Node --partition=cpu --states=idle,mixed,allocated --format=%N | wc -l) == "${#NODES[@]}" ]]; }

start_daemons() {
  local daemon
  # --force: its checks of who may write the parent directories do not allow for a common /var/tmp.
  running munged || launch munged --foreground --force --socket="$DIR/run/munge.socket" --key-file="$DIR/secret/munge" \
    --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/secret/munge.seed"
  wait_for 15 munged munge --socket="$DIR/run/munge.socket" --no-input
  running mariadbd || start_database
  running slurmdbd || launch slurmdbd -D
  wait_for 60 slurmdbd sacctmgr --noheader list cluster
  [[ -n $(sacctmgr -nP list cluster onehost) ]] || sacctmgr --immediate --quiet add cluster onehost >/dev/null
  running slurmctld || launch slurmctld -D
  wait_for 30 slurmctld slurmctld_answers
  for daemon in "${SLURMDS[@]}"; do
    running "$daemon" || launch "$daemon" -D -N "${daemon#slurmd.}"
  done
  for daemon in "${DAEMONS[@]}"; do wait_for 30 "$daemon" running "$daemon"; done
}

up() {
  check_machine
  check_configuration_is_ours
  check_ports
  mkdir -p "$DIR"/{bin,run,log,state,secret}
  chmod 755 "$DIR" "$DIR/run" && chmod 700 "$DIR/secret" "$DIR/state"
  install_packages
  # Daemons must agree on the configuration, so it is not changed under running ones.
  if [[ ! -e $SLURM_CONF ]] || ! any_running; then configure; fi
  # Torch and submitit use a node's name as an address.
  grep -qF "$MARK" /etc/hosts || echo "127.0.0.1 ${NODES[*]} $MARK" >>/etc/hosts
  start_daemons
  # A node that a crash has drained stays so until told; Slurm calls it an error to tell one that is well.
  scontrol update "NodeName=n[1-4]" State=RESUME >/dev/null 2>&1 || true
  set_partitions UP # a `down` that was interrupted has left them down
  wait_for 60 "the nodes" nodes_answer
  status
}

down() {
  check_machine
  if any_running || steps_left; then
    [[ -e $SLURM_CONF ]] || configure
    check_configuration_is_ours
    end_jobs
    stop "${SLURMDS[@]}" slurmctld
    stop slurmdbd
    stop mariadbd munged
  fi
  forget_names
  remove_configuration
  rmdir /sys/fs/cgroup/{memory,freezer}/slurm_n[1-4] 2>/dev/null || true
  echo "the one-host cluster is down; its queue and accounting stay in $DIR"
}

remove_configuration() {
  local file
  for file in "$ETC"/{slurm,slurmdbd,gres,cgroup}.conf; do
    if [[ -e $file && $(head -n 1 "$file") == "$MARK" ]]; then rm "$file"; fi
  done
}

status() {
  local daemon pid missing=0
  for daemon in "${DAEMONS[@]}"; do
    if pid=$(pid_of "$daemon"); then echo "$daemon: pid $pid"; else echo "$daemon: does not run"; missing=1; fi
  done
  ((missing == 0)) || return 1
  echo "memory limits: $(memory_enforcement)"
  sinfo
}

clean() {
  down
  rm -rf --one-file-system "$DIR"
  echo "$DIR is removed"
}

case "${1:-}" in
  up | down | status | clean) "$1" ;;
  *) refuse "usage: onehost.sh up|down|status|clean" ;;
esac
