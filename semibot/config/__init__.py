"""Settings: values that say how semibot behaves."""

from .deadlines import Deadlines as Deadlines

__all__ = ["Deadlines"]
