#!/usr/bin/env bash
# All stages on a real pretrained model and real GSM8K questions, a few steps each: it shows that the whole way works on a
# CPU, not how good it can get. bash results/smollm2/run.sh MODEL_FOLDER gsm8k_train.jsonl gsm8k_test.jsonl
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$1 train=$2 test=$3
common="--init $model --data $train --train_size 400 --val_size 16 --batch_size 8 --lr 1e-4 --dtype bfloat16 --max_tokens 200
  --max_chain 48 --eval_batch 16 --threads ${THREADS:-2} --eval_every 100"
declare -A method=(
  [cot_sft]="--method cot_sft --steps 40"
  [latent_sft_r2]="--method latent_sft --ratio 2 --stage1_steps 5,5,10 --steps 20 --train_size 160"
  [colar_lora]="--method colar --steps 20 --lora_rank 16 --c_max 2"
)
for name in "${@:4}"; do
  out=out/smollm2-$name
  start=$SECONDS
  python train.py $common ${method[$name]} --out "$out"
  echo "$name: trained in $((SECONDS - start)) s"
  python eval.py --ckpt "$out" --data "$test" --limit 50 --threads "${THREADS:-2}" --json "results/smollm2/$name.json"
done
