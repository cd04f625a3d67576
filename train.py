"""Entry for launchers: `python train.py CONFIG [key=value ...]`, the same under `torchrun` and `deepspeed`."""

import sys

from lm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
