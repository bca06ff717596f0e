"""`--tracing`: whether it can be had, and where spans go. OpenTelemetry is imported in here, by those who ask for it."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING

from peer import __version__
from peer.config import Config
from peer.exit_codes import ExitCode, Fatal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from peer.daemon.spans import PeerSpans

_EXPORTERS = "opentelemetry_traces_exporter"


def check_tracing(config: Config) -> None:
    """Raises Fatal if spans are asked for and can't be made."""
    if config.tracing and (find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None):
        raise Fatal(
            ExitCode.CONFIG,
            "--tracing: OpenTelemetry is not installed; install it with pip install 'grapevine[tracing]'",
        )


def open_tracing(config: Config, peer: int) -> PeerSpans | None:
    """The spans of this peer, on their way to where the OTEL_* variables say; None without --tracing. Raises Fatal."""
    if not config.tracing:
        return None
    check_tracing(config)
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from peer.daemon.spans import PeerSpans

    about: dict[str, str | int] = {
        "service.version": __version__,
        "service.instance.id": f"{config.run}/{peer}",
        "grapevine.run": config.run,
        "grapevine.peer": peer,
    }
    if "OTEL_SERVICE_NAME" not in os.environ:
        about["service.name"] = "grapevine"
    try:
        provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        for exporter in _exporters():
            provider.add_span_processor(BatchSpanProcessor(exporter))
    except ValueError as error:
        raise Fatal(ExitCode.CONFIG, f"--tracing: an OTEL_* variable makes no sense: {error}") from None
    return PeerSpans(provider)


def _exporters() -> list[SpanExporter]:
    """Those that OTEL_TRACES_EXPORTER names; OTLP over HTTP if it names none. Raises Fatal."""
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")]
    return [_exporter(name) for name in names if name not in ("", "none")]


def _exporter(name: str) -> SpanExporter:
    wanted = _otlp() if name == "otlp" else name
    found = next(iter(entry_points(group=_EXPORTERS, name=wanted)), None)
    if found is None:
        installed = ", ".join(sorted({point.name for point in entry_points(group=_EXPORTERS)}))
        raise Fatal(
            ExitCode.CONFIG,
            f"--tracing: OTEL_TRACES_EXPORTER names {name}, but {wanted} is not installed; there are {installed}",
        )
    made: SpanExporter = found.load()()
    return made


def _otlp() -> str:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    return "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
