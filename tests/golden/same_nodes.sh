#!/bin/bash

# Parameters
#SBATCH --account=pr_123_general
#SBATCH --array=0-1%2
#SBATCH --chdir=/home/me/scalebench
#SBATCH --comment=scalebench-0123456789ab
#SBATCH --cpus-per-task=64
#SBATCH --gres=gpu:a100:4
#SBATCH --hold
#SBATCH --job-name=scalebench-test
#SBATCH --no-requeue
#SBATCH --nodelist=n1,n2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/scalebench/results/template/test/slurm/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --signal=USR2@0
#SBATCH --time=15

# setup
export SCALEBENCH_JOB_START=$(date +%s.%N)
export SRUN_CPUS_PER_TASK=64

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /home/me/scalebench/results/template/test/slurm/%A_%a_%t_log.out --kill-on-bad-exit=0 /home/me/scalebench/.venv/bin/python -u -m submitit.core._submit /home/me/scalebench/results/template/test/slurm
