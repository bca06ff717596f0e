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

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from peer.gossip.wire_dtype import WireDtype
from peer.methods import usual
from topology.suggestion import nearest

ENV_PREFIX = "GRAPEVINE_"
#: What launchers of torch jobs set; read after our own prefix.
ENV_ALIASES = {"peer": "RANK", "peers": "WORLD_SIZE"}

#: The task without a model, which only a simulator plays.
TIMING = "timing"


#: Fields whose flag is not their name: the flag repeats, so it is in the singular.
FLAGS = {"addresses": "--address"}
#: Options of one topology.
OF_TOPOLOGY = {"base_k": "base", "degree": "random-regular", "probability": "erdos-renyi", "radius": "geometric"}


class ConfigError(ValueError):
    """A configuration that can't be run: one sentence that names the option and the repair."""


class Config(BaseModel):
    """Everything a peer, or a cluster of them, is told. Options marked [alike] must be equal on all peers; links check it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # the run
    run: str = Field("grapevine", min_length=1, description="Name of the run; peers of another run are refused [alike]")
    peers: int = Field(8, ge=1, le=100_000, description="Number of peers [alike]")
    seed: int = Field(0, ge=0, description="Seed of model, data order, schedules and stragglers [alike]")

    # who talks to whom
    algorithm: Literal[
        "ring-all-reduce",
        "dpsgd",
        "matcha",
        "slowmo",
        "diloco",
        "noloco",
        "qg-dsgdm",
        "gradient-tracking",
        "choco-sgd",
        "al-dsgd",
        "al-matcha",
        "sync-sgd",
        "async-sgd",
        "ad-psgd",
    ] = Field("dpsgd", description="How peers agree [alike]")
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
        description="ring, torus, complete (noloco's default), star (default of sync-sgd and async-sgd), exponential, random-regular, "
        "erdos-renyi, geometric, a JSON file of edges; with other ones in each round: base, one-peer-exponential, equidyn [alike]",
    )
    base_k: int | None = Field(
        None,
        ge=1,
        description="base: k of the Base-(k+1) graph, most neighbours a peer has in a round (default 1); more needs fewer rounds [alike]",
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
        0, ge=0, description="dpsgd, qg-dsgdm: a new random graph every R rounds; 0: one for all time [alike]"
    )
    mixing: Literal["metropolis", "best-constant"] = Field(
        "metropolis",
        description="dpsgd, qg-dsgdm, gradient-tracking, choco-sgd, al-dsgd: weights on a fixed graph [alike]",
    )
    budget: float = Field(
        0.5, description="matcha, al-matcha: communication budget in (0, 1]; more talks more and agrees faster [alike]"
    )

    # what goes over the wire
    wire_dtype: str | None = Field(
        None,
        description="Format of vectors: fp32, bf16, fp16, int8, or top-k:R, the fraction R of the elements "
        "(default: fp32, or int8 for choco-sgd) [alike]",
    )
    consensus_step: float | None = Field(
        None,
        gt=0,
        le=1,
        description="gamma of noloco (1), of dpsgd, matcha, choco-sgd with int8 (1) or top-k:R (R); "
        "more agrees faster until it diverges [alike]",
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
        description="Safety net: a round closes after so many seconds whatever the policy says, and silent peers become suspect; "
        "a ring waits so long for each shard, whole: more on slow links",
    )
    in_flight: Literal["carry", "redo", "drain"] = Field(
        "carry", description="A chunk under way at the close: count it next round, compute it again, or finish it first"
    )
    weighting: Literal["samples", "peers"] | None = Field(
        None,
        description="samples: in proportion to finished work; peers: each peer's mean gradient counts alike "
        "(default: samples for ring-all-reduce, slowmo, diloco and sync-sgd, peers for the others) [alike]",
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
    outer_lr: float | None = Field(
        None,
        gt=0,
        description="slowmo (default 1), diloco (0.7), noloco (0.7): how much of a round's mean displacement is applied [alike]",
    )
    outer_momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="slowmo (default 0.7), diloco (0.9), noloco (0.5): how much of the last round's move is kept [alike]",
    )
    chunks: int = Field(8, ge=1, description="Chunks a batch is cut into; more chunks waste less of a straggler's work")
    lr: float = Field(0.1, gt=0, description="Learning rate [alike]")
    optimizer: str = Field("sgd", description="sgd, momentum, adam or adamw (a task may bring its own) [alike]")
    partition: Literal["iid", "shards", "dirichlet"] = Field(
        "iid", description="How the data is dealt to peers [alike]"
    )
    alpha: float = Field(0.5, gt=0, description="dirichlet: less is more uneven [alike]")
    trainer: Literal["auto", "thread", "process"] = Field(
        "auto",
        description="Where chunks are computed: in a thread of the daemon, in a process of their own (on the CPU), or auto: in a process "
        "where the model is large and it can be had",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="What chunks are computed on; vectors are mixed and sent by the CPU"
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
    listen: str = Field(
        "127.0.0.1:0", description="HOST:PORT to listen on; port 0: any free one (default: its own of addresses)"
    )
    addresses: tuple[str, ...] = Field((), description="HOST:PORT of every peer, in the order of ids (peer only)")
    metrics_port: int = Field(
        0,
        ge=-1,
        le=65535,
        description="Port of /metrics and of the page at / (up: the first of as many as peers); 0: any, -1: none",
    )
    metrics_eval_every: float = Field(
        0.0,
        ge=0,
        description="Seconds between two evaluations of a peer's own model on the test set for its metrics, beside the training, at most "
        "a tenth of a core; 0: none",
    )
    preset: Literal["local", "lan", "wan"] = Field(
        "local", description="Time-outs: how long a silent neighbour is waited for"
    )
    start_timeout: float = Field(60.0, gt=0, description="Seconds to wait for all peers to appear")
    data_plane: Literal["grpc", "direct", "auto"] = Field(
        "auto",
        description="What vectors and words travel on: gRPC, plain sockets beside it, or these where both ends of a link can",
    )
    data_port: int = Field(
        0, ge=0, le=65535, description="TCP port of those sockets (up: the first of as many as peers); 0: any free one"
    )
    reflection: bool = Field(False, description="Serve gRPC reflection")
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="How much a peer says")
    log_format: Literal["text", "json"] = Field(
        "text", description="text, or json: all that is said, as one JSON object a line on standard error"
    )
    tracing: bool = Field(
        False, description="OpenTelemetry spans, exported as the OTEL_* variables say; needs grapevine[tracing]"
    )

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise ValueError("must be in (0, 1]")
        return value

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("write HOST:PORT; 0.0.0.0 is every address of this machine, and port 0 any free one")
        return value

    @field_validator("wire_dtype")
    @classmethod
    def _wire_dtype(cls, value: str | None) -> str | None:
        return None if value is None else str(WireDtype.parse(value))  # one spelling, since peers compare it

    @field_validator("straggler", "addresses", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(";") if word.strip()) if isinstance(value, str) else value

    @model_validator(mode="wrap")
    @classmethod
    def _fill_in(cls, values: Any, handler: ModelWrapValidatorHandler[Config]) -> Config:
        """What the algorithm has where nobody says anything does not count as given: with another it is another."""
        if not isinstance(values, Mapping):
            return handler(values)
        own = usual(values)
        made = handler({**own, **values})
        made.model_fields_set.difference_update(own.keys() - values.keys())
        return made

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.batch_size % self.chunks:
            divisors = [c for c in range(1, self.batch_size + 1) if self.batch_size % c == 0]
            near = min(divisors, key=lambda c: abs(c - self.chunks))
            raise ValueError(
                f"chunks: {self.chunks} chunks do not divide a batch of {self.batch_size} samples; {near} would"
            )
        if self.data_port and self.data_plane == "grpc":
            raise ValueError(
                "data_port: vectors travel over gRPC, which needs no other port; use --data-plane direct or auto"
            )
        if self.device != "cpu" and self.trainer == "process":
            raise ValueError("device: a trainer in a process of its own computes on the CPU; use --trainer thread")
        for name, topology in OF_TOPOLOGY.items():
            if getattr(self, name) is not None and self.topology != topology:
                raise ValueError(f"{name}: {self.topology} has none; it is for --topology {topology}")
        return self

    @property
    def chunk_samples(self) -> int:
        """b = B / m."""
        return self.batch_size // self.chunks

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
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def load(
    command_line: Mapping[str, object],
    environment: Mapping[str, str],
    file: Path | None = None,
    defaults_of: Callable[[str], Mapping[str, object]] = lambda task: {},
    seen: Callable[[Mapping[str, object]], None] = lambda given: None,
) -> Config:
    """The config from its four sources; `command_line` holds only what was really given. Raises ConfigError.

    defaults_of: what a task asks for where nobody says otherwise. It is asked before anything is validated: a batch size may only
    fit the task's own number of chunks. seen: told of all that is given, before anything is validated.
    """
    given: dict[str, object] = _from_file(file) if file else {}
    given.update(_from_environment(environment))
    given.update(command_line)
    seen(given)
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
    told = "" if f"not {given!r}" in message else f", not {given!r}"
    return f"{flag(name)}: {message[0].lower()}{message[1:]}{told}"


#: Named by the schedule's digest or checked on their own, so not compared as text.
_CHECKED_ELSEWHERE = {"run", "peers", "topology", "base_k", "degree", "probability", "radius"}


def alike(config: Config) -> dict[str, object]:
    """The options marked [alike] in their description, by name: peers that differ in one of them refuse each other."""
    return {
        name: getattr(config, name)
        for name, field in Config.model_fields.items()
        if "[alike]" in (field.description or "") and name not in _CHECKED_ELSEWHERE
    }
