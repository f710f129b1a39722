#!/bin/bash
# Convert a data set as an array of Slurm jobs, a shard each:
#   sbatch convert_slurm.sh imagenet/train s3://betons/source.beton --image-size 256
# When they have ended, `xmix inspect s3://betons/source.beton` names the shards that are missing.
# Submit these again, with the same number of shards: sbatch --array=7,12 convert_slurm.sh ...
#SBATCH --array=0-63
#SBATCH --cpus-per-task=8
#SBATCH --requeue
set -euo pipefail
shards=64 # one more than the last index of the array
exec xmix convert "$@" --shard "$SLURM_ARRAY_TASK_ID/$shards" \
    --workers "${SLURM_CPUS_PER_TASK:-1}" --overwrite
