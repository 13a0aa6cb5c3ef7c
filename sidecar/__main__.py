"""`python -m sidecar`: the sidecar process, with the command line of `daprd`."""

import sys

from sidecar.serve import main

sys.exit(main(sys.argv[1:]))
