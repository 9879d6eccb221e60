"""MRdIB on models of other code: `attach.py` for any `nn.Module`, `suite.py` and `child.py` for checkouts of whole suites."""
