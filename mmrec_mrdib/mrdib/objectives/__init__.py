"""The objectives of MRdIB, one file each."""
