"""Make the kits of other rooms importable before any scenario wants them."""

from __future__ import annotations

import trials as trials
