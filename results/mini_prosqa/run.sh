# What made the files here, with one thread: CoT-SFT from mini-base, and from it every other method, by 64 problems a step.
set -e
train() {
    python train.py --data mini_prosqa --val_size 128 --threads 1 --out out/prosqa/$1 "${@:2}"
    cp out/prosqa/$1/metrics.jsonl results/mini_prosqa/$1.jsonl
}
judge() { python eval.py --ckpt out/prosqa/$1 --threads 1 --json results/mini_prosqa/$1.json "${@:2}"; }
replace="--intervene keep noise swap zeros mean shuffle truncate"

train cot_sft --method cot_sft --lr 4e-3 --steps 1500 --eval_every 250
judge cot_sft $replace
after() { train $1 --init out/prosqa/cot_sft "${@:2}"; judge $1 $replace; }
train no_cot --init out/prosqa/cot_sft --method no_cot --steps 800
judge no_cot
after pause --method pause --steps 800
after codi --method codi --steps 800
after coconut --method coconut --latents_a_step 1 --steps 800
after coconut_long --method coconut --latents_a_step 1 --steps 1800 --curriculum 0.8
replace="$replace top1"
after latent_sft --method latent_sft --steps 800
