"""What the draft reads past the window, while the verifier waits for the link."""

from __future__ import annotations

from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.speculation import Speculation
from spmoe.state.commands import DraftAhead
from spmoe.state.events import DraftPredicted, TokenDrafted


class RunAhead:
    """How far the draft has come past the window, and how far it may go."""

    def __init__(self, speculation: Speculation, gamma: int, layers: int, pace: Pace) -> None:
        """`gamma` as configured, `layers` of the target."""
        self.granted: DraftAhead | None = None
        """What the draft may do and has not done yet."""
        self.read = 0
        """Tokens that it has read from the window's last one on."""
        self.known = 0
        """Tokens of the next window that it has read."""
        self._most = speculation.lead(gamma)
        self._piece = speculation.piece
        self._layers = layers
        self._draft_ns = pace.draft_ns
        self._layer = 0
        """The layer that it comes to next, on the token behind those read."""

    @property
    def exhausted(self) -> bool:
        """Whether it has read as much as it may."""
        return self.read >= self._most

    def step_begun(self) -> None:
        """A new window is drafted."""
        self.known = self._layer = 0

    def window_closed(self, read: int) -> None:
        """Of what was drafted, `read` tokens lie past the window."""
        self.read = read

    def grant(self, time: int, gamma: int, until: int) -> DraftAhead | None:
        """The next piece, behind a window of `gamma` drafted tokens, if it is over `until` (ns): the draft is not to be
        interrupted."""
        first = self._layer
        end = min(first + self._piece, self._layers)
        if time + self._draft_ns * (end - first) // self._layers > until:
            return None
        self.granted = DraftAhead(gamma + self.read, first, end)
        return self.granted

    def expects(self, event: DraftPredicted | TokenDrafted) -> bool:
        """Whether the event is the outcome of what was granted."""
        granted = self.granted
        if granted is None or event.token != granted.token:
            return False
        if isinstance(event, TokenDrafted):
            return granted.first >= self._layers
        return event.layer == granted.first and len(event.forecasts) == granted.until - granted.first

    def draft_predicted(self) -> None:
        """The draft got through the layers granted; at the last one its token is still to come."""
        assert self.granted is not None
        token, _, until = self.granted
        self._layer = until
        self.granted = None if until < self._layers else DraftAhead(token, until, until)

    def token_drafted(self) -> None:
        """The draft has read another token."""
        self.read += 1
        self._layer = 0
        self.granted = None
