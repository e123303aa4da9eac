#!/usr/bin/env bash
# The rows of results/mini, one seed at a time: bash results/mini/run.sh 0 [latent_sft_r2 ...]
# Each trains from mini-base and is judged on the five test sets (1,000 questions each), on 2 CPU threads.
set -euo pipefail
cd "$(dirname "$0")/../.."
seed=$1; shift
declare -A train=(
  [cot_sft]="--method cot_sft"
  [latent_sft_r2]="--method latent_sft --ratio 2"
  [latent_sft_r4]="--method latent_sft --ratio 4"
)
for row in "${@:-cot_sft latent_sft_r2 latent_sft_r4}"; do
  for name in $row; do
    out=out/$name-seed$seed
    python train.py ${train[$name]} --seed "$seed" --out "$out" 2>/dev/null | tee "results/mini/$name-seed$seed.log"
    intervene=$([ "$name" = cot_sft ] && echo "--intervene noise swap" || echo "--intervene noise swap zeros mean shuffle truncate")
    python eval.py --ckpt "$out" --data mini mini_hard mini_svamp mini_multiarith mini_long $intervene \
      --json "results/mini/$name-seed$seed.json"
  done
done
