"""The planted bugs: what each changes, what finds it, and a seed that does."""

from __future__ import annotations

from typing import Final

from history_bugs import HISTORY_BUGS
from links_bugs import LINKS_BUGS
from runs_bugs import RUNS_BUGS
from store_bugs import STORE_BUGS

MUTANTS: Final = (*STORE_BUGS, *LINKS_BUGS, *HISTORY_BUGS, *RUNS_BUGS)
"""Every one of them."""
