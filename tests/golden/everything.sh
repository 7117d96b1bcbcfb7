#!/bin/bash

# Parameters
#SBATCH --account=pr_123_general
#SBATCH --array=0-4%3
#SBATCH --chdir=/home/me/scalebench
#SBATCH --comment=scalebench-0123456789ab
#SBATCH --constraint='a100|h100'
#SBATCH --contiguous
#SBATCH --cpus-per-task=32
#SBATCH --gres=gpu:a100:2
#SBATCH --hold
#SBATCH --job-name=scalebench-test
#SBATCH --mail-type=END
#SBATCH --mem=3072M
#SBATCH --no-requeue
#SBATCH --nodelist='n[1-2]'
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/scalebench/results/template/test/slurm/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=short
#SBATCH --reservation='week 12'
#SBATCH --signal=USR2@0
#SBATCH --time=15

# setup
export SCALEBENCH_JOB_START=$(date +%s.%N)
module purge
module load cuda/12.4
export SRUN_CPUS_PER_TASK=32
export NCCL_SOCKET_IFNAME=ib0

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /home/me/scalebench/results/template/test/slurm/%A_%a_%t_log.out --kill-on-bad-exit=0 /home/me/scalebench/.venv/bin/python -u -m submitit.core._submit /home/me/scalebench/results/template/test/slurm
