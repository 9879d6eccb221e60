"""python main.py -m MiniFREEDOM -d mini"""

import argparse

from utils.quick_start import quick_start

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", "-m", default="MiniFREEDOM")
    parser.add_argument("--dataset", "-d", default="mini")
    args, _ = parser.parse_known_args()
    quick_start(args.model, args.dataset, config_dict={"gpu_id": 0})
