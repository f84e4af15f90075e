"""Logs: one JSON object a line, with the request's id where there is one.

Prompts and answers never stand in them.
"""

import logging

import structlog


def configure_logs() -> None:
    """Set up structlog in this process; each deployment calls it once."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
