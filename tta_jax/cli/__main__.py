"""`python -m tta_jax.cli`."""

import sys

from tta_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
