"""What has to be closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """Holds threads or memory until it is closed: at the latest by the end of its `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Gives them back.  Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
