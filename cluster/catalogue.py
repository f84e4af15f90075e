"""The models that are served now, as the registered engines say."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from moeray.cluster.contracts import EngineInfo
from moeray.cluster.errors import FieldViolation, InvalidRequest, ModelNotFound, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model over all its engines; limits are those of the smallest. Lengths in tokens."""

    name: str
    engines: int
    ranks: int
    context_length: int
    vocabulary_size: int
    max_sequence_tokens: int
    default_max_output_tokens: int
    block_tokens: int
    """Of one KV block: engines of one model share it."""


class Catalogue:
    """Kept by the router's updates. ``configured`` is served also while no engine has registered;
    where it is not known, requests may wait for an engine.
    """

    def __init__(self, configured: ServedModel | None = None) -> None:
        self._configured = {} if configured is None else {configured.name: configured}
        self._models = self._configured
        self._changed = asyncio.Event()

    @property
    def models(self) -> list[ServedModel]:
        """By name."""
        return [self._models[name] for name in sorted(self._models)]

    def update(self, engines: Iterable[EngineInfo]) -> None:
        by_name: dict[str, list[EngineInfo]] = {}
        for engine in engines:
            by_name.setdefault(engine.model, []).append(engine)
        registered = {name: _served(name, group) for name, group in by_name.items()}
        self._models = self._configured | registered
        self._changed.set()
        self._changed = asyncio.Event()

    def find(self, name: str) -> ServedModel:
        """The model of that name; empty: the only one.

        Raises ModelNotFound, InvalidRequest for an empty name where several are served, and
        Unavailable where none is.
        """
        if not self._models:
            raise Unavailable("no engine is registered")
        if name in self._models:
            return self._models[name]
        if name:
            raise ModelNotFound(f"no engine serves the model {name!r}")
        if len(self._models) > 1:
            served = ", ".join(sorted(self._models))
            raise InvalidRequest([FieldViolation("model", f"several are served: {served}")])
        return next(iter(self._models.values()))

    async def wait_for(self, name: str, timeout_s: float) -> ServedModel:
        """As ``find``, but where no engine is registered wait for one."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._models:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.find(name)


def _served(name: str, engines: list[EngineInfo]) -> ServedModel:
    return ServedModel(
        name=name,
        engines=len(engines),
        ranks=min(engine.ranks for engine in engines),
        context_length=min(engine.context_length for engine in engines),
        vocabulary_size=engines[0].vocabulary_size,
        max_sequence_tokens=min(engine.max_sequence_tokens for engine in engines),
        default_max_output_tokens=min(engine.default_max_output_tokens for engine in engines),
        block_tokens=engines[0].block_tokens,
    )
