"""Typer options derived from the fields of `Config`, so that each is declared once."""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from peer.config import ENV_PREFIX, TIMING, Config, ConfigError, choices, flag, load
from peer.exit_codes import ExitCode, Fatal
from peer.logs import begin

PANELS = {
    "The run": ("run", "peers", "seed"),
    "Who talks to whom": (
        "algorithm",
        "head",
        "head_computes",
        "backup_workers",
        "simulate_staleness",
        "staleness_aware_lr",
        "topology",
        "base_k",
        "degree",
        "probability",
        "radius",
        "random_graph_every",
        "mixing",
        "budget",
    ),
    "What goes over the wire": ("wire_dtype", "consensus_step"),
    "When a round ends": (
        "closing",
        "quorum",
        "round_deadline",
        "deadline_mads",
        "round_timeout",
        "in_flight",
        "weighting",
    ),
    "Training": (
        "task",
        "batch_size",
        "chunks",
        "local_steps",
        "outer_lr",
        "outer_momentum",
        "lr",
        "optimizer",
        "partition",
        "alpha",
        "trainer",
        "device",
        "nonfinite_limit",
    ),
    "Emulated devices": ("scenario", "straggler", "chunk_seconds"),
    "When to stop": ("target_loss", "max_rounds", "max_seconds", "eval_every", "report"),
    "The network": (
        "peer",
        "listen",
        "addresses",
        "metrics_port",
        "metrics_eval_every",
        "preset",
        "start_timeout",
        "data_plane",
        "data_port",
        "reflection",
    ),
    "Logs and traces": ("log_level", "log_format", "tracing"),
}
#: What only real processes have.
DAEMON_OPTIONS = (
    *(
        "trainer",
        "device",
        "peer",
        "listen",
        "addresses",
        "metrics_port",
        "metrics_eval_every",
        "start_timeout",
        "data_plane",
        "data_port",
        "reflection",
        "log_level",
        "log_format",
        "tracing",
    ),
)
#: What is said of options that are equal on all peers.
ALIKE = " [alike]"
#: Before the name of a switch that is turned off.
NO = "no_"


def with_options(names: Collection[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command `f(config, ...)` so that typer gives it one option per named field, and --config FILE."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "config"]
        switches = [name for name in names if Config.model_fields[name].annotation is bool]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            file: Path | None = arguments.pop("config", None)
            given = {name: arguments.pop(name) for name in names}
            chosen = {name: value for name, value in given.items() if value is not None and value != []}
            chosen |= {name: False for name in switches if arguments.pop(NO + name)}
            _speak_as(
                {"log_format": os.environ.get(ENV_PREFIX + "LOG_FORMAT"), **chosen}
            )  # the sources may be bad themselves
            command(config=load(chosen, os.environ, file, _defaults_of, _speak_as), **arguments)

        parameters = [*own, _config_file(), *(made for name in names for made in _parameters(name))]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _defaults_of(task: str) -> Mapping[str, object]:
    """What the task asks for where the user says nothing. Raises Fatal."""
    if task in (Config.model_fields["task"].default, TIMING):
        return {}  # the config's own defaults are made for it, and torch need not be imported to know that
    from peer.training.task import TaskError, load_task

    try:
        return load_task(task, check=False).defaults
    except TaskError as error:
        raise Fatal(ExitCode.CONFIG, str(error)) from None


def _speak_as(given: Mapping[str, object]) -> None:
    """From here on a sentence about a bad option is in the format that was asked for."""
    if given.get("log_format") == "json":
        begin("json", "warning")


def all_but(*names: str) -> list[str]:
    return [name for name in Config.model_fields if name not in names]


def check_address(address: str) -> None:
    """Raises ConfigError if it is not like HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is no address of a peer; write HOST:PORT, as in 127.0.0.1:7000")


def _config_file() -> inspect.Parameter:
    option = typer.Option(
        "--config", "-c", help="TOML file; `grapevine init` writes a commented one", show_default=False
    )
    return _keyword("config", Annotated[Path | None, option])


def described(name: str) -> str:
    """What an option is, with the names that it may have."""
    told = (Config.model_fields[name].description or "").removesuffix(ALIKE)
    names = choices(name)
    return told if all(choice in told for choice in names) else f"{told}: {', '.join(names)}"


def _parameters(name: str) -> list[inspect.Parameter]:
    """The option of a field; of a switch two, on and off. The one that changes nothing by itself is not in the help, whose columns are
    narrow."""
    field = Config.model_fields[name]
    spelled, default = flag(name), field.default
    told = described(name)
    if default is not None and default is not False and default != () and "(default:" not in told:
        told += f" [default: {default:g}]" if isinstance(default, float) else f" [default: {str(default).lower()}]"
    shown: dict[str, Any] = {
        "help": escape(told),  # else what is in brackets would be a style
        "rich_help_panel": next(title for title, members in PANELS.items() if name in members),
        "show_default": False,
    }
    if field.annotation is not bool:
        return [_keyword(name, Annotated[_plain_type(field.annotation) | None, typer.Option(spelled, **shown)])]
    off = f"--no-{spelled.removeprefix('--')}"
    return [
        _keyword(name, Annotated[bool | None, typer.Option(spelled, hidden=default, metavar="", **shown)]),
        _keyword(NO + name, Annotated[bool, typer.Option(off, hidden=not default, metavar="", **shown)], default=False),
    ]


def _keyword(name: str, annotation: Any, default: object = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _plain_type(annotation: Any) -> Any:
    """The type typer parses: the config validates names, so that errors can name the nearest valid one."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return str
    if origin is tuple:
        return list[str]
    if origin in (types.UnionType, typing.Union):
        return _plain_type(next(arg for arg in typing.get_args(annotation) if arg is not type(None)))
    return annotation
