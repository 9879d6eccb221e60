"""MRdIB: `plugin.py` wraps a backbone; `encoder.py` is its stochastic stage; objectives and estimators, one file each."""
