"""``python -m tournant``: the command line, where no script is on the path."""

from __future__ import annotations

import sys

from tournant.cli import main

sys.exit(main())
