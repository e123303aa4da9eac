#!/usr/bin/env bash
# A real pretrained model on real GSM8K questions, on a CPU: CoT-SFT, then Latent-SFT(2) from it, both judged.
#   bash results/smollm2/cpu/run.sh MODEL_FOLDER DATA_FOLDER      (gsm8k_train.jsonl, gsm8k_test.jsonl, multiarith_test.jsonl, ..)
set -euo pipefail
cd "$(dirname "$0")/../../.."
model=$1 data=$2
common="--data $data/gsm8k_train.jsonl --val_size 32 --batch_size 8 --lr 3e-4 --dtype bfloat16 --max_tokens 200 --eval_batch 32"

judge() {                    # name limit set ..
  for set in "${@:3}"; do
    python eval.py --ckpt "out/smollm2-$1" --data "$data/${set}_test.jsonl" --limit "$2" --batch 64 --json "results/smollm2/cpu/$1_$set.json"
  done
}

python train.py --method cot_sft --init "$model" $common --steps 870 --eval_every 290 --max_chain 72 --threads 1 --out out/smollm2-cot_sft
judge cot_sft 400 gsm8k
judge cot_sft 300 multiarith svamp gsm_hard
python train.py --method latent_sft --ratio 2 --init out/smollm2-cot_sft $common --optimizer adamw --train_size 2400 \
  --stage1_lr 2e-4 --stage1_steps 15,15,60 --steps 340 --eval_every 170 --max_chain 48 --out out/smollm2-latent_sft_r2
judge latent_sft_r2 300 gsm8k multiarith
