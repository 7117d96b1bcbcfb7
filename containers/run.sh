#!/bin/bash
# Start a container runtime with a chosen part of this environment and nothing else of it.
#
#   containers/run.sh [--allow NAME]... RUNTIME [OPTION]... exec --cleanenv ... IMAGE COMMAND...
#
# It runs on the node, at the job's start: Slurm's variables are known only then. `--cleanenv` drops them all, and the
# runtime takes in those that are called APPTAINERENV_<name>. So there is no file with values to write, to protect and
# to remove, and this shell is replaced by the runtime: signals meet no process in between.
#
# NAME is a variable, or a pattern as WANDB_*. What a pattern finds stays out if its name sounds like a secret.
set -euo pipefail
LC_ALL=C

ALLOWED=('SLURM_*' 'SLURMD_NODENAME' 'SRUN_CPUS_PER_TASK' 'SUBMITIT_*' 'SCALEBENCH_*' 'HYDRA_*'
  'NCCL_*' 'GLOO_*' 'UCX_*' 'FI_*' 'OMP_*' 'MKL_*' 'KMP_*' 'OPENBLAS_NUM_THREADS' 'TORCH_*' 'TORCHINDUCTOR_*' 'PYTORCH_*' 'TRITON_*'
  'CUDA_VISIBLE_DEVICES' 'CUDA_DEVICE_ORDER' 'CUDA_DEVICE_MAX_CONNECTIONS' 'CUDA_LAUNCH_BLOCKING' 'CUDA_MPS_*'
  'NVIDIA_TF32_OVERRIDE' 'ROCR_VISIBLE_DEVICES' 'HIP_VISIBLE_DEVICES' 'GPU_DEVICE_ORDINAL' 'HSA_*' 'MIOPEN_*')
SECRET='TOKEN|SECRET|PASSWORD|CREDENTIAL|JWT|_KEY'

refuse() { echo "error: $1" >&2; exit 2; }

allowed() { # name
  local pattern
  for pattern in "${ALLOWED[@]}"; do
    [[ $1 != "$pattern" ]] || return 0 # asked for by its very name
    # shellcheck disable=SC2053 # a pattern it is
    if [[ $1 == $pattern && ! $1 =~ $SECRET ]]; then return 0; fi
  done
  return 1
}

check_places() { # the command: what is to be bound or laid over and is missing is said in one line, with the node's name
  local previous='' word
  for word in "$@"; do
    [[ ! $previous =~ ^--(bind|overlay)$ || -e ${word%%:*} ]] ||
      refuse "container: ${previous#--} ${word%%:*}: not there on node ${SLURMD_NODENAME:-$HOSTNAME}"
    previous=$word
  done
}

while [[ ${1:-} == --allow ]]; do
  (($# > 1)) || refuse "run.sh: --allow needs a name"
  ALLOWED+=("$2")
  shift 2
done
(($# > 0)) || refuse "usage: run.sh [--allow NAME]... RUNTIME [OPTION]... exec --cleanenv ... IMAGE COMMAND..."
command -v "$1" >/dev/null || refuse "container: no program $1 on node ${SLURMD_NODENAME:-$HOSTNAME}"
check_places "$@"

case ${1##*/} in
  singularity*) runtime=SINGULARITY ;;
  *) runtime=APPTAINER ;;
esac
# What would come in by the runtime's own doors. Proxies, which may hold a password, it lets in by itself.
for name in "${!APPTAINERENV_@}" "${!SINGULARITYENV_@}" {APPTAINER,SINGULARITY}_{ENV,ENV_FILE}; do
  unset "$name"
done
for name in {http,https,ftp,all,no}_proxy {HTTP,HTTPS,FTP,ALL,NO}_PROXY; do
  allowed "$name" || unset "$name"
done
for name in $(compgen -e); do
  if allowed "$name"; then export "${runtime}ENV_$name=${!name}"; fi
done
# Values are values: without this, a runtime has its shell expand $(...) in them.
export "${runtime}_NO_EVAL=1"
export "${runtime}ENV_SCALEBENCH_CONTAINER_VERSION=$("$1" --version 2>/dev/null || true)"
# Seconds since 1970: how long the container takes to start is an entry of the record's ledger. (Before bash 5: date.)
export "${runtime}ENV_SCALEBENCH_CONTAINER_START=${EPOCHREALTIME:-$(date +%s.%N)}"
exec "$@"
