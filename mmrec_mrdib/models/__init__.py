"""Backbones: `base.py` is the contract, then one file a model."""
