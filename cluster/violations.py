"""What is wrong with a request, collected field by field, so that a client hears it all at once."""

from dataclasses import dataclass, field

from moeray.cluster.errors import FieldViolation, InvalidRequest


@dataclass(slots=True)
class Violations:
    """Collects violations; ``raise_any`` at the end."""

    found: list[FieldViolation] = field(default_factory=list)

    def add(self, path: str, description: str) -> None:
        self.found.append(FieldViolation(path, description))

    def limit(self, path: str, value: int, most: int, unit: str) -> bool:
        """Whether ``value`` is at most ``most``; a violation if not."""
        if value > most:
            self.add(path, f"{value} {unit}, at most {most} are allowed")
        return value <= most

    def between(self, path: str, value: float, least: float, most: float) -> None:
        """A violation unless ``value`` is from ``least`` to ``most``; NaN never is."""
        if not least <= value <= most:
            self.add(path, f"{value} is not from {least:g} to {most:g}")

    def above(self, path: str, value: float, floor: float, most: float) -> None:
        """A violation unless ``value`` is above ``floor`` and at most ``most``; NaN never is."""
        if not floor < value <= most:
            self.add(path, f"{value} is not above {floor:g} and up to {most:g}")

    def raise_any(self) -> None:
        """Raises InvalidRequest with all violations, if there are any."""
        if self.found:
            raise InvalidRequest(self.found)
