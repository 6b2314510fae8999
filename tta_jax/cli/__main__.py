"""`python -m tta_jax.cli`."""

import sys

from tta_jax.cli import main

sys.exit(main())
