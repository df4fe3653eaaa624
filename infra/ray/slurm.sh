#!/bin/bash
# One conversion on the nodes of a Slurm job: sbatch infra/ray/slurm.sh convert s3://models/llama s3://models/ranks ...
# Every node has reshard[ray] in the environment that the job starts with. Sent again, the job goes on where it ended.
#SBATCH --job-name=reshard
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --requeue
set -euo pipefail

port=${RAY_PORT:-6379}
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
address=${address%% *}

# --block keeps each node's Ray alive for as long as its step of the job.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --block --node-ip-address="$address" --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" &
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        bash -c "until ray start --block --address=$address:$port --num-cpus=$SLURM_CPUS_PER_TASK; do sleep 2; done" &
fi

# All machines should be there before the leader counts them; what is missing after two minutes is done without.
for ((second = 0; second < 120; second += 2)); do
    joined=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
        ray status --address="$address:$port" 2>/dev/null | grep --count ' node_' || true)
    [ "$joined" -lt "$SLURM_JOB_NUM_NODES" ] || break
    sleep 2
done

# The leader is on a machine of the cluster.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    reshard "$@" --engine ray --ray-address "$address:$port"
