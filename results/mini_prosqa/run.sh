# What made the files here, with one thread: CoT-SFT from mini-base; from it, every other method with 800 steps of 64 problems.
set -e
train() { python train.py --data mini_prosqa --val_size 128 --threads 1 --out out/prosqa/$1 "${@:2}"; }
judge() { python eval.py --ckpt out/prosqa/$1 --intervene keep noise swap zeros mean shuffle truncate top1 --threads 1 --json results/mini_prosqa/$1.json; }

train cot_sft --method cot_sft --lr 4e-3 --steps 1500 --eval_every 250
judge cot_sft
after() { train $1 --init out/prosqa/cot_sft --steps 800 "${@:2}"; judge $1; }
after no_cot --method no_cot
after pause --method pause
after coconut --method coconut --latents_a_step 1
after codi --method codi
after latent_sft --method latent_sft
after latent_sft_step --method latent_sft --segmentation step
