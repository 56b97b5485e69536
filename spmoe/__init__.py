"""The policy core of SP-MoE: it decides which experts to move, when and where to; it never acts.

Pure Python and numpy: no torch, no simpy, no threads, no clock.  `sim` and `engine` interpret its decisions.
"""

from typing import Final

__version__: Final = "0.1.0"
