"""One typed configuration. Command line > environment > file > the task's default > default.

Every option is declared once, here: the command line (`--chunk-seconds`), the environment (`GRAPEVINE_CHUNK_SECONDS`) and the TOML
file (`chunk_seconds`) are derived from the fields. The config is built once, in the command line, and passed down; nothing reads
the environment later.
"""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from peer.gossip.wire_dtype import WireDtype
from topology.suggestion import nearest

ENV_PREFIX = "GRAPEVINE_"
#: What launchers of torch jobs set; read after our own prefix.
ENV_ALIASES = {"peer": "RANK", "peers": "WORLD_SIZE"}


#: Options that an algorithm needs otherwise than others do, where nobody says anything.
DEFAULTS_OF: Mapping[str, Mapping[str, object]] = {
    "sync-sgd": {"topology": "star"},
    "async-sgd": {"topology": "star", "closing": "none", "head_computes": False},
    "ad-psgd": {"closing": "none"},
}
#: The same of an option that was given: backup workers are a barrier that does without some, and nothing of another round counts.
BACKUP_DEFAULTS = {"closing": "barrier", "in_flight": "redo"}
#: Algorithms in which one peer, the head, has the model.
WITH_HEAD = ("sync-sgd", "async-sgd")
#: Algorithms in which peers share no rounds.
WITHOUT_ROUNDS = ("async-sgd", "ad-psgd")

#: Options that mean nothing with other algorithms.
ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "head": WITH_HEAD,
    "head_computes": ("sync-sgd",),
    "backup_workers": ("sync-sgd",),
    "simulate_staleness": ("async-sgd",),
    "staleness_aware_lr": ("async-sgd",),
}

#: The task without a model, which only a simulator plays.
TIMING = "timing"


class ConfigError(ValueError):
    """A configuration that can't be run: one sentence that names the option and the repair."""


class Config(BaseModel):
    """Everything a peer, or a cluster of them, is told. Options marked [alike] must be equal on all peers; links check it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the run
    run: str = Field("grapevine", min_length=1, description="Name of the run; peers of another run are refused [alike]")
    peers: int = Field(8, ge=1, le=100_000, description="Number of peers [alike]")
    seed: int = Field(0, ge=0, description="Seed of model, data order, schedules and stragglers [alike]")

    # who talks to whom
    algorithm: Literal["ring-all-reduce", "dpsgd", "matcha", "sync-sgd", "async-sgd", "ad-psgd"] = Field(
        "dpsgd", description="How peers agree [alike]"
    )
    head: int = Field(0, ge=0, description="sync-sgd, async-sgd: the peer that has the model and steps [alike]")
    head_computes: bool = Field(
        True, description="sync-sgd: whether the head computes gradients as well (async-sgd: it does not) [alike]"
    )
    backup_workers: int = Field(
        0,
        ge=0,
        description="sync-sgd: drop the last e gradients of a step, with --closing barrier; more waits less and wastes more [alike]",
    )
    simulate_staleness: int = Field(
        0, ge=0, le=1000, description="async-sgd: hold each gradient back until so many others have come [alike]"
    )
    staleness_aware_lr: bool = Field(False, description="async-sgd: learning rate / staleness [alike]")
    topology: str = Field(
        "ring",
        description="ring, torus, complete, star (default of sync-sgd and async-sgd), exponential, random-regular, erdos-renyi, geometric, "
        "or a JSON file of edges [alike]",
    )
    degree: int | None = Field(
        None, ge=1, description="Degree of random-regular (default 4, less for few peers) [alike]"
    )
    probability: float | None = Field(
        None, gt=0, le=1, description="Edge probability of erdos-renyi (default: surely connected) [alike]"
    )
    radius: float | None = Field(
        None, gt=0, description="Radius of geometric in the unit square (default: surely connected) [alike]"
    )
    random_graph_every: int = Field(
        0, ge=0, description="dpsgd: a new random graph every R rounds; 0: one for all time [alike]"
    )
    mixing: Literal["metropolis", "best-constant"] = Field(
        "metropolis", description="Weights of dpsgd on a fixed graph [alike]"
    )
    budget: float = Field(
        0.5, description="matcha: communication budget in (0, 1]; more talks more and agrees faster [alike]"
    )

    # what goes over the wire
    wire_dtype: str = Field(
        "fp32",
        description="Format of vectors: fp32, bf16, fp16, int8, or top-k:R, the fraction R of the elements (dpsgd, matcha) [alike]",
    )
    consensus_step: float | None = Field(
        None,
        gt=0,
        le=1,
        description="gamma of dpsgd and matcha with int8 (default 1) and top-k:R (default R); more agrees faster until it diverges [alike]",
    )

    # when a round ends
    closing: Literal["barrier", "first", "quorum", "deadline", "none"] = Field(
        "first",
        description="first: never wait; barrier: wait for all; quorum, deadline: between; none: of async-sgd and ad-psgd [alike]",
    )
    quorum: float = Field(0.5, gt=0, le=1, description="quorum: close when this fraction of the neighbours has [alike]")
    round_deadline: float | None = Field(
        None,
        gt=0,
        description="deadline: seconds a round may last (default: adapts, median + deadline-mads * MAD of rounds seen)",
    )
    deadline_mads: float = Field(
        4.0, ge=0, description="deadline: MADs above the median; more waits longer and wastes less"
    )
    round_timeout: float = Field(
        300.0,
        gt=0,
        description="Safety net: a round closes after so many seconds whatever the policy says, and silent peers become suspect",
    )
    in_flight: Literal["carry", "redo", "drain"] = Field(
        "carry", description="A chunk under way at the close: count it next round, compute it again, or finish it first"
    )
    weighting: Literal["samples", "peers"] | None = Field(
        None,
        description="samples: in proportion to finished work; peers: each peer's mean gradient counts alike "
        "(default: samples for ring-all-reduce and sync-sgd, peers for dpsgd and matcha) [alike]",
    )

    # training
    task: str = Field(
        "digits",
        description="digits, digits-cnn, or module:Class of your own; simulate also plays timing, which has no model [alike]",
    )
    batch_size: int = Field(16, ge=1, description="Samples per peer and optimizer step")
    local_steps: int = Field(
        1, ge=1, description="Optimizer steps of a peer between two exchanges; a full round is so many batches [alike]"
    )
    chunks: int = Field(8, ge=1, description="Chunks a batch is cut into; more chunks waste less of a straggler's work")
    lr: float = Field(0.1, gt=0, description="Learning rate [alike]")
    optimizer: str = Field("sgd", description="sgd, momentum, adam or adamw (a task may bring its own) [alike]")
    partition: Literal["iid", "shards", "dirichlet"] = Field(
        "iid", description="How the data is dealt to peers [alike]"
    )
    alpha: float = Field(0.5, gt=0, description="dirichlet: less is more uneven [alike]")
    trainer: Literal["thread", "process"] = Field(
        "thread",
        description="Where chunks are computed: beside the daemon in its process, or in one of its own (on the CPU)",
    )
    nonfinite_limit: int = Field(
        10, ge=1, description="Chunks in a row with NaN or infinite gradients before the peer stops"
    )

    # emulated devices
    scenario: str = Field(
        "none",
        description="How slow which device is and what the network is like: none, one-4x, one-10x, exp, hetero-1-to-4, bimodal, pareto, "
        "pause, wan, or a TOML file",
    )
    straggler: tuple[str, ...] = Field(
        (),
        description="0=4x, all=exp:1.0, 3=pareto:2, 2=pause:30s@20s, 1=trace:FILE; may be repeated, added to the scenario",
    )
    chunk_seconds: float = Field(
        0.0, ge=0, description="Nominal seconds of a chunk, by sleeping; 0: as fast as the machine is"
    )

    # when to stop
    target_loss: float | None = Field(
        None, gt=0, description="Stop when the mean model's loss on the training set is at or below this"
    )
    max_rounds: int | None = Field(None, ge=1, description="Stop after so many rounds")
    max_seconds: float | None = Field(None, gt=0, description="Stop after so many seconds of training")
    eval_every: float = Field(
        0.25, gt=0, description="Seconds between two evaluations of the mean model, outside the peers"
    )
    report: Path | None = Field(None, description="Write the report to this JSON file")

    # the network
    peer: int | None = Field(None, ge=0, description="Id of this peer, 0 .. peers-1 (peer only)")
    listen: str = Field("127.0.0.1:0", description="HOST:PORT to listen on; port 0: any free one")
    addresses: tuple[str, ...] = Field((), description="HOST:PORT of every peer, in the order of ids (peer only)")
    metrics_port: int = Field(
        0, ge=-1, le=65535, description="Port of /metrics (up: the first of as many as peers); 0: any, -1: none"
    )
    preset: Literal["local", "lan", "wan"] = Field(
        "local", description="Time-outs: how long a silent neighbour is waited for"
    )
    start_timeout: float = Field(60.0, gt=0, description="Seconds to wait for all peers to appear")
    data_plane: Literal["grpc", "direct", "auto"] = Field(
        "grpc",
        description="What vectors travel on: gRPC, a plain socket beside it, or that where both ends of a link can",
    )
    data_port: int = Field(
        0, ge=0, le=65535, description="TCP port of those sockets (up: the first of as many as peers); 0: any free one"
    )
    reflection: bool = Field(False, description="Serve gRPC reflection")
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="How much a peer says")

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise ValueError("must be in (0, 1]")
        return value

    @field_validator("wire_dtype")
    @classmethod
    def _wire_dtype(cls, value: str) -> str:
        return str(WireDtype.parse(value))  # one spelling, since peers compare it

    @field_validator("straggler", "addresses", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(";") if word.strip()) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        algorithm = values.get("algorithm")
        own = DEFAULTS_OF.get(algorithm, {}) if isinstance(algorithm, str) else {}
        backups = BACKUP_DEFAULTS if values.get("backup_workers") not in (None, 0, "0") else {}
        return {**backups, **own, **values}

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.batch_size % self.chunks:
            divisors = [c for c in range(1, self.batch_size + 1) if self.batch_size % c == 0]
            near = min(divisors, key=lambda c: abs(c - self.chunks))
            raise ValueError(
                f"chunks: {self.chunks} chunks do not divide a batch of {self.batch_size} samples; {near} would"
            )
        if self.random_graph_every and self.algorithm != "dpsgd":
            raise ValueError(f"random_graph_every: only dpsgd draws random graphs, not {self.algorithm}")
        self._check_rounds()
        self._check_head()
        return self

    def _check_rounds(self) -> None:
        if (self.closing == "none") != (self.algorithm in WITHOUT_ROUNDS):
            if self.closing == "none":
                raise ValueError(
                    f"closing: {self.algorithm} has rounds, and they must end; none is for {', '.join(WITHOUT_ROUNDS)}"
                )
            raise ValueError(
                f"closing: {self.algorithm} has no rounds that could be closed; use --closing none, or leave it out"
            )
        if self.algorithm in WITHOUT_ROUNDS and self.in_flight != "carry":
            raise ValueError(
                f"in_flight: a round of {self.algorithm} ends when its own quota is done, with nothing in flight; leave it out"
            )
        if self.algorithm in WITHOUT_ROUNDS and self.local_steps > 1:
            raise ValueError(
                f"local_steps: {self.algorithm} takes each gradient as it comes, so there is one step; use 1"
            )

    def _check_head(self) -> None:
        for name, methods in ONLY_FOR.items():
            if self.algorithm not in methods and getattr(self, name) != self._default(name):
                raise ValueError(f"{name}: it is for {' and '.join(methods)}, and means nothing with {self.algorithm}")
        if self.algorithm not in WITH_HEAD:
            return
        if self.head >= self.peers:
            raise ValueError(
                f"head: there is no peer {self.head} among {self.peers}; ids go from 0 to {self.peers - 1}"
            )
        if not self.backup_workers:
            return
        if self.closing != "barrier":
            raise ValueError(
                f"backup_workers: with --closing {self.closing} nobody waits for the last gradients anyhow; use --closing barrier"
            )
        if self.in_flight == "carry":
            raise ValueError(
                "backup_workers: a chunk that is carried over is a gradient of an older x, which must not count; use --in-flight redo"
            )
        if self.backup_workers >= self.num_computing:
            raise ValueError(
                f"backup_workers: {self.backup_workers} of {self.num_computing} computing peers leave nobody to step with"
            )

    @property
    def chunk_samples(self) -> int:
        """b = B / m."""
        return self.batch_size // self.chunks

    def _default(self, name: str) -> object:
        return DEFAULTS_OF.get(self.algorithm, {}).get(name, Config.model_fields[name].default)

    @property
    def num_computing(self) -> int:
        """Peers that compute gradients."""
        return self.peers - (not self.head_computes)

    @property
    def round_chunks(self) -> int:
        """H m, of a full round."""
        return self.local_steps * self.chunks


def choices(name: str) -> tuple[str, ...]:
    """The valid names of an option that has a fixed set of them, else nothing."""
    annotation = Config.model_fields[name].annotation
    members = [annotation, *typing.get_args(annotation)]
    return next((typing.get_args(member) for member in members if typing.get_origin(member) is Literal), ())


def flag(name: str) -> str:
    """Command line spelling of a field."""
    return "--" + name.replace("_", "-")


def load(
    command_line: Mapping[str, object],
    environment: Mapping[str, str],
    file: Path | None = None,
    defaults_of: Callable[[str], Mapping[str, object]] = lambda task: {},
) -> Config:
    """The config from its four sources; `command_line` holds only what was really given. Raises ConfigError.

    defaults_of: what a task asks for where nobody says otherwise. It is asked before anything is validated: a batch size may only
    fit the task's own number of chunks.
    """
    given: dict[str, object] = _from_file(file) if file else {}
    given.update(_from_environment(environment))
    given.update(command_line)
    task = given.get("task", Config.model_fields["task"].default)
    defaults = defaults_of(task) if isinstance(task, str) else {}
    return validated({**defaults, **given})


def validated(values: Mapping[str, object]) -> Config:
    """Config of these values. Raises ConfigError with one sentence."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def _from_file(path: Path) -> dict[str, object]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `grapevine init` writes a config to start from") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for name in values:
        if name not in Config.model_fields:
            raise ConfigError(f"{path}: unknown option {name!r}; {nearest(name, Config.model_fields)}")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    known = {ENV_PREFIX + name.upper(): name for name in Config.model_fields}
    for name in environment:
        if name.startswith(ENV_PREFIX) and name not in known:
            raise ConfigError(f"environment: unknown variable {name}; {nearest(name, known)}")
    values: dict[str, object] = {
        field: environment[alias] for field, alias in ENV_ALIASES.items() if alias in environment
    }
    values.update({known[name]: text for name, text in environment.items() if name in known})
    return values


def _sentence(error: ValidationError) -> str:
    first: Mapping[str, Any] = error.errors()[0]
    where = first["loc"]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not where:
        name, _, rest = message.partition(": ")
        return f"{flag(name)}: {rest}"
    name = str(where[0])
    given = first["input"]
    if first["type"] == "extra_forbidden":
        return f"unknown option {name!r}; {nearest(name, Config.model_fields)}"
    if first["type"] == "literal_error":
        return f"{flag(name)}: unknown {name} {given!r}; {nearest(str(given), choices(name))}"
    return f"{flag(name)}: {message[0].lower()}{message[1:]}, not {given!r}"


#: Named by the schedule's digest or checked on their own, so not compared as text.
_CHECKED_ELSEWHERE = {"run", "peers", "topology", "degree", "probability", "radius"}


def alike(config: Config) -> dict[str, object]:
    """The options marked [alike] in their description, by name: peers that differ in one of them refuse each other."""
    return {
        name: getattr(config, name)
        for name, field in Config.model_fields.items()
        if "[alike]" in (field.description or "") and name not in _CHECKED_ELSEWHERE
    }
