"""Speed, as ratios to bare PyTorch measured in the same run: `make bench`."""
