"""The gateways that the router knows, and the outcomes that wait for them.

Pure policy: no clock of its own. A gateway that vanished and comes back gets another session, by
which it sees that what it held is lost.
"""

from dataclasses import dataclass, field

from moeray.cluster.contracts import Placement, Refused


@dataclass(slots=True)
class _Session:
    name: str
    last_seen: float
    outcomes: dict[str, Placement | Refused] = field(default_factory=dict)
    """Of requests that waited, until they are taken; by request id."""


class GatewaySessions:
    """``incarnation`` names this run of the router, to tell a restart."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._count = 0
        self._sessions: dict[str, _Session] = {}

    def __contains__(self, gateway_id: str) -> bool:
        return gateway_id in self._sessions

    def heartbeat(self, gateway_id: str, now: float) -> str:
        """A gateway's sign of life; returns its session."""
        session = self._sessions.get(gateway_id)
        if session is None:
            self._count += 1
            session = _Session(f"{self._incarnation}.{self._count}", now)
            self._sessions[gateway_id] = session
        session.last_seen = now
        return session.name

    def excuse(self, now: float) -> None:
        """Count every gateway's silence from now."""
        for session in self._sessions.values():
            session.last_seen = now

    def silent_since(self, time: float) -> list[str]:
        """Gateways that were not heard of after ``time``."""
        return [name for name, session in self._sessions.items() if session.last_seen < time]

    def forget(self, gateway_id: str) -> None:
        del self._sessions[gateway_id]

    def add_outcome(self, gateway_id: str, outcome: Placement | Refused) -> None:
        """Keep an outcome for a gateway that has a session."""
        self._sessions[gateway_id].outcomes[outcome.request_id] = outcome

    def outcomes(self, gateway_id: str) -> dict[str, Placement | Refused]:
        """Outcomes that wait for the gateway, by request id: those taken out are dropped."""
        session = self._sessions.get(gateway_id)
        return {} if session is None else session.outcomes

    def take_outcomes(self, gateway_id: str) -> list[Placement | Refused]:
        """Outcomes of requests that waited, each handed out once."""
        outcomes = self.outcomes(gateway_id)
        taken = list(outcomes.values())
        outcomes.clear()
        return taken
