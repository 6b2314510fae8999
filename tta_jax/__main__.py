"""Run the commands by `python -m tta_jax`."""

from __future__ import annotations

import sys

from tta_jax.cli.main import main

sys.exit(main())
