"""`python -m mmrec_mrdib`, the same as `mmrec-mrdib`."""

import sys

from mmrec_mrdib.cli import main

if __name__ == "__main__":
    sys.exit(main())
