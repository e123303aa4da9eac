"""Train a method: python train.py --method latent_sft"""
from minilatent.config import parse_args, run
from minilatent.setup import train

if __name__ == "__main__":
    run(lambda argv: train(parse_args(argv)))
