"""The objectives of MRdIB, one file each; `base.py`: one of one's own."""
