"""Routes for those who watch over the server: its metrics, and a profile of it."""

import asyncio
import dataclasses
import threading
from typing import Annotated

import pydantic
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from jaxserver.adapters.http import openapi
from jaxserver.adapters.http.body import BodyReader
from jaxserver.adapters.http.disconnect import unless_client_leaves
from jaxserver.adapters.http.wire import WireModel
from jaxserver.ports.metrics import Metrics
from jaxserver.ports.profiling import Profiler

_ZIP = "application/zip"


class ProfileBody(WireModel):
    """How long to watch."""

    seconds: Annotated[float, pydantic.Field(ge=1, le=60)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsRoutes:
    """Gives the numbers to whoever collects them."""

    metrics: Metrics

    def router(self) -> APIRouter:
        routes = APIRouter()
        described = openapi.route(media="text/plain")
        routes.add_api_route("/metrics", self.show_metrics, **described)
        return routes

    async def show_metrics(self) -> Response:
        """Counts, sizes and times, in the text form of Prometheus."""
        text = await asyncio.to_thread(self.metrics.scrape)
        return Response(text, headers={"Content-Type": self.metrics.content_type})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileRoutes:
    """Watches the devices for as long as is asked."""

    profiler: Profiler
    read: BodyReader

    def router(self) -> APIRouter:
        routes = APIRouter()
        described = openapi.route(
            body=ProfileBody,
            media=_ZIP,
            also={409: "A profile is being taken already."},
        )
        routes.add_api_route("/profile", self.profile, **described)
        return routes

    async def profile(self, request: Request) -> Response:
        """The trace that JAX's profiler takes meanwhile, in a zip archive."""
        body = await self.read(request, ProfileBody)
        cancelled = threading.Event()
        work = asyncio.to_thread(self.profiler.capture, body.seconds, cancelled)
        try:
            archive = await unless_client_leaves(request.receive, work)
        finally:
            cancelled.set()
        named = {"Content-Disposition": 'attachment; filename="profile.zip"'}
        return Response(archive, headers=named, media_type=_ZIP)
