"""The command line with the tiny task alone: ``python -m tests.core tiny fit ...``."""

from __future__ import annotations

import sys

from scanweave.core.cli import main

from .tiny import SPEC

sys.exit(main(tasks={"tiny": SPEC}))
