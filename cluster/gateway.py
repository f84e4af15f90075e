"""The gateway's Serve deployment: what Serve calls, and nothing else.

Serve deploys, heals and stops the gateway. Requests do not pass through Serve: the gateway has a
port of its own, so Serve counts no ongoing request and stops a replica at once; the drain happens
in ``__del__``, which Serve awaits.
"""

import asyncio
import uuid
from typing import Any

from ray.serve.handle import DeploymentHandle

from moeray.cluster.contracts import ROUTER_NAME
from moeray.cluster.gateway_process import GatewayProcess, GatewaySettings
from moeray.cluster.logs import configure_logs
from moeray.cluster.ray_router import RayRouter
from moeray.cluster.tokenizer import HarmonyTokenizer


class Gateway:
    """One gateway replica.

    ``serve.deployment(Gateway).bind(settings, engines)`` makes the application: the handle of the
    engines is what has Serve deploy them with the gateways. Nothing is called through it.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: GatewaySettings,
        engines: DeploymentHandle[Any],
        router_name: str = ROUTER_NAME,
    ) -> None:
        del engines
        configure_logs()
        self._process: GatewayProcess | None = None
        tokenizer = await asyncio.to_thread(
            HarmonyTokenizer.load,
            tokenizer_file=settings.tokenizer_file,
            checkpoint=settings.checkpoint,
        )
        self._process = GatewayProcess(
            settings,
            RayRouter(router_name),
            tokenizer,
            gateway_id=f"gateway-{uuid.uuid4().hex[:12]}",
        )
        await self._process.start()

    async def check_health(self) -> None:
        """Serve calls this; raising has the replica replaced."""
        if self._process is not None:
            self._process.check()

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to stop."""
        # The attribute is missing when __init__ did not run.
        process = getattr(self, "_process", None)
        if process is not None:
            self._process = None
            await process.drain()
