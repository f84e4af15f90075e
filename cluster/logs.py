"""Logs: one JSON object a line, from Moeray's own code and from every library.

Each line says when (``timestamp``, UTC), how grave (``level``), which process (``component`` and
its id) and what (``event``); ``request_id`` stands wherever a request is concerned, because the
gateway binds it to each call's context. Prompts and answers never stand in them.
"""

import logging
import sys
from typing import Final, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogLevel = Literal["debug", "info", "warning", "error"]
_CHATTY: Final = ("asyncio", "grpc")
"""Libraries that narrate: they speak from warnings on."""


def configure_logs(component: str, level: LogLevel = "info", **ids: str) -> None:
    """Set up the logs of this process: its part of the cluster, the least level, and its ids."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Constants({"component": component, **ids}),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(default=str)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


class _Constants:
    """Adds the same fields to every line."""

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields

    def __call__(self, logger: WrappedLogger, method_name: str, event: EventDict) -> EventDict:
        for name, value in self._fields.items():
            event.setdefault(name, value)
        return event
