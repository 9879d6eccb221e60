"""Raw formats, one file each."""
