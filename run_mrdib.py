#!/usr/bin/env python
"""Train a multimodal recommender with or without MRdIB: the `train` command under the name the paper's readers expect.

python run_mrdib.py --model VBPR --dataset ml-100k --compare
"""

import sys

from mmrec_mrdib.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
