"""``python -m semibot.testing`` runs simulations; see ``--help``."""

from __future__ import annotations

import sys

from semibot.testing.simulation.command import main

if __name__ == "__main__":
    sys.exit(main())
