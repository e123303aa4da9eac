#!/usr/bin/env bash
# The papers' comparison in small: SmolLM2-135M on the equation chains of GSM8K's 7,473 training questions, on one GPU.
#   bash results/smollm2/run.sh MODEL_FOLDER DATA_FOLDER      (gsm8k_train.jsonl, gsm8k_test.jsonl, multiarith_test.jsonl, ..)
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$1 data=$2
common="--data $data/gsm8k_train.jsonl --val_size 128 --batch_size 32 --accumulate 1 --dtype bfloat16 --max_tokens 256 --eval_batch 128
        --optimizer adamw --beta2 0.99 --test_size 16"

run() {                      # name, settings ..
  python train.py --out "out/smollm2-$1" $common "${@:2}"
}
judge() {                    # run's name, where the results go, settings of eval.py ..
  python eval.py --ckpt "out/smollm2-$1" --data "$data"/{gsm8k,multiarith,svamp,gsm_hard}_test.jsonl --brief --batch 660 --json "results/smollm2/$2.json" "${@:3}"
}
intervene() {
  python eval.py --ckpt "out/smollm2-$1" --data "$data/gsm8k_test.jsonl" --limit 200 --intervene noise swap zeros --json "results/smollm2/interventions/$2.json" "${@:3}"
}

run cot_sft --method cot_sft --init "$model" --lr 4e-4 --steps 440 --eval_every 220 --max_chain 100              # what all others start from
judge cot_sft cot_sft --max_chain 128
from="--init out/smollm2-cot_sft"                            # from here on, 991 steps; a step of stage 1 counts as two
run cot_sft_more --method cot_sft $from --lr 2e-4 --steps 991 --eval_every 248 --max_chain 100
judge cot_sft_more cot_sft_more --max_chain 128
run no_cot --method no_cot $from --lr 2e-4 --steps 991 --eval_every 248
judge no_cot no_cot
for r in 2 4; do
  run latent_sft_r$r --method latent_sft --ratio $r $from --stage1_lr 2e-4 --stage1_steps 80,60,160 --lr 3e-4 --steps 391 --eval_every 98 --max_chain $((128 / r))
  judge latent_sft_r$r latent_sft_r$r
  intervene latent_sft_r$r latent_sft_r$r
done
run latent_sft_r2_uniform --method latent_sft --ratio 2 --labels uniform $from --lr 3e-4 --steps 991 --eval_every 248 --max_chain 64
judge latent_sft_r2_uniform latent_sft_r2_uniform
run colar --method colar $from --latent_weight 1 --head_width 0 --lr 3e-4 --steps 991 --eval_every 248 --max_chain 64
for c in 2 5; do
  judge colar colar_c$c --speed $c
done
intervene colar colar_c2 --speed 2
