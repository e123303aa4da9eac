"""Train a method: python train.py --method latent_sft"""

from minilatent.config import run_script
from minilatent.run import parse_args, train

if __name__ == "__main__":
    run_script(lambda argv: train(parse_args(argv)))
