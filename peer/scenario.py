"""Scenarios: how slow which device is, what the network is like, and who goes away. One TOML file, played by `up`, `simulate` and
`compare` alike.

    description = "..."
    straggler = ["0=4x"]            # as --straggler; the command line's are added
    chunk_seconds = "10ms"          # nominal time of a chunk, if the command line says nothing

    [network]
    latency = "40ms"                # one way, between any two peers
    jitter = "2ms"                  # added to it: exponential with this mean, drawn for each message
    bandwidth = "100Mbit/s"         # of each peer's uplink, shared by what it sends
    loss = 0.001                    # of packets; see peer/sim/network.py for what TCP makes of it
    matrix = "latency.csv"          # seconds one way from peer i (row) to peer j (column), instead of latency
    cores = 2                       # all peers share one machine with so many cores ...
    message_seconds = "0.8ms"       # ... and a vector costs so much of one of them

    [[crash]]                       # the process dies, without a goodbye
    peer = 3
    at = "20s"

    [[partition]]                   # these peers are cut off from the others
    peers = [0, 1]
    at = "20s"
    until = "40s"

Peers are checked when it is known how many there are. Raises ConfigError: one sentence with file and line.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from peer.config import ConfigError
from topology.suggestion import nearest

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "": 1.0}
_RATES = {"kbit/s": 125.0, "Mbit/s": 125e3, "Gbit/s": 125e6, "kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9}


def seconds(value: object) -> object:
    """Seconds from a number or from text with a unit: us, ms, s, m."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(-?\d+\.?\d*|-?\.\d+)\s*(us|ms|s|m|)\s*", value, re.ASCII)
        if not found:
            raise ValueError(f"{value!r} is no time; write for instance 40ms or 20s")
        return float(found[1]) * _UNITS[found[2]]
    return value


def rate(value: object) -> object:
    """Bytes per second from a number or from text with a unit."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(-?\d+\.?\d*)\s*(\S+)\s*", value, re.ASCII)
        if not found or found[2] not in _RATES:
            raise ValueError(f"{value!r} is no rate; write for instance 100Mbit/s or 12.5MB/s")
        return float(found[1]) * _RATES[found[2]]
    return value


Seconds = Annotated[float, BeforeValidator(seconds), Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, BeforeValidator(rate), Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Network(_Part):
    """Seconds one way, bytes per second of each uplink, fraction of packets lost; see the head of this file."""

    latency: Seconds = 0.0005
    jitter: Seconds = 0.0
    bandwidth: Rate = math.inf
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0
    matrix: str | None = None
    cores: Annotated[int, Field(ge=0)] = 0
    message_seconds: Seconds = 0.0


class Crash(_Part):
    peer: int = Field(ge=0)
    at: Seconds


class Partition(_Part):
    peers: tuple[int, ...] = Field(min_length=1)
    at: Seconds
    until: Seconds

    @model_validator(mode="after")
    def _order(self) -> Partition:
        if self.until <= self.at:
            raise ValueError(f"until: {self.until:g} s is not after at, {self.at:g} s")
        return self


class Scenario(_Part):
    """See the head of this file."""

    description: str = ""
    straggler: tuple[str, ...] = ()
    chunk_seconds: Seconds | None = None
    network: Network | None = None
    crash: tuple[Crash, ...] = ()
    partition: tuple[Partition, ...] = ()

    @property
    def only_simulated(self) -> str | None:
        """What real processes on one machine can't be made to do, or None."""
        network = self.network or Network()
        told = {
            "a partition": bool(self.partition),
            "packet loss": bool(network.loss),
            "a matrix of latencies": network.matrix is not None,
            "a number of cores": bool(network.cores),
        }
        return next((what for what, there in told.items() if there), None)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a scenario came from, to name file and line of what is wrong with it."""

    file: Path
    text: str

    def error(self, path: tuple[int | str, ...], message: str) -> ConfigError:
        return ConfigError(f"{self.file}, line {self._line(path)}: {message}")

    def _line(self, path: tuple[int | str, ...]) -> int:
        """Where the last name on the path is written: at the top, or in the table (the which-th of that name) that it belongs to; else
        the line of the table, else the first."""
        names = [part for part in path if isinstance(part, str)]
        which = next((part for part in path if isinstance(part, int)), 0)
        table, wanted, at, seen = "", names[0] if len(names) > 1 else "", 1, 0
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := re.match(r"\s*\[\[?\s*([\w.-]+)\s*\]\]?", line):
                table = header[1]
                seen += table == names[0]
                at = number if table == names[0] and seen == which + 1 else at
            elif (
                table == wanted
                and seen in (0, which + 1)
                and names
                and re.match(rf"\s*{re.escape(names[-1])}\s*=", line)
            ) or re.match(rf"\s*{re.escape('.'.join(names))}\s*=", line):
                return number
        return at


def names() -> list[str]:
    """The scenarios that come with Grapevine."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))


def load_scenario(name: str, num_peers: int) -> Scenario:
    """The scenario of that name (see `names`) or in that file, checked for so many peers. Raises ConfigError."""
    source = _source(name)
    try:
        values = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source.file}: not valid TOML: {error}") from None
    scenario = _validated(values, source)
    for which, crash in enumerate(scenario.crash):
        if crash.peer >= num_peers:
            raise source.error(("crash", which, "peer"), f"there is no peer {crash.peer} among {num_peers}")
    for which, part in enumerate(scenario.partition):
        strangers = [peer for peer in part.peers if not 0 <= peer < num_peers]
        if strangers:
            raise source.error(("partition", which, "peers"), f"there is no peer {strangers[0]} among {num_peers}")
    if scenario.network is not None and scenario.network.matrix is not None:
        latencies(scenario.network, num_peers, source)
    return scenario


def spec_error(name: str, spec: str, message: str) -> ConfigError:
    """What is wrong with one of the straggler specs of a scenario, with file and line."""
    source = _source(name)
    written = spec.partition("=")[2].removeprefix(f"trace:{source.file.parent}/")
    lines = source.text.splitlines()
    line = next((n for n, text in enumerate(lines, 1) if written in text and not text.lstrip().startswith("#")), 1)
    return ConfigError(f"{source.file}, line {line}: {message}")


def _beside(folder: Path, spec: str) -> str:
    """A spec whose trace, if it names one, is found in that folder."""
    named = re.fullmatch(r"\s*([^=]*)=\s*trace:(.+)", spec)
    return f"{named[1]}=trace:{folder / named[2].strip()}" if named else spec


def files_of(name: str, scenario: Scenario) -> list[Path]:
    """What a scenario was read from: its own file, and that of its matrix."""
    network = scenario.network
    return [_source(name).file, *([Path(network.matrix)] if network is not None and network.matrix is not None else [])]


def latencies(network: Network, num_peers: int, source: Source | None = None) -> NDArray[np.float64]:
    """[n, n] seconds one way from row to column. Raises ConfigError if the file of the matrix is not that."""
    assert network.matrix is not None
    path = Path(network.matrix)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        where = f"{source.file}, matrix: " if source else ""
        raise ConfigError(f"{where}{path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            row = [float(word) for word in re.split(r"[,\s]+", line.strip())]
        except ValueError:
            raise ConfigError(
                f"{path}, line {number}: a latency in seconds is expected, not {line.strip()!r}"
            ) from None
        if len(row) != num_peers:
            raise ConfigError(f"{path}, line {number}: {len(row)} latencies for {num_peers} peers")
        if wrong := [value for value in row if not 0 <= value < math.inf]:
            raise ConfigError(f"{path}, line {number}: {wrong[0]:g} s is no latency; it must be finite, and 0 or more")
        rows.append(row)
    if len(rows) != num_peers:
        raise ConfigError(f"{path}, line {max(len(lines), 1)}: {len(rows)} rows of latencies for {num_peers} peers")
    return np.asarray(rows, np.float64)


def _folder() -> Any:
    return resources.files("peer") / "scenarios"


def _source(name: str) -> Source:
    if name in names():
        file = _folder() / f"{name}.toml"
        return Source(Path(str(file)), file.read_text())
    path = Path(name)
    if not path.suffix and not path.exists():
        raise ConfigError(f"--scenario: unknown scenario {name!r}; {nearest(name, names())}, or name a TOML file")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--scenario: {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    return Source(path, text)


def _validated(values: Mapping[str, object], source: Source) -> Scenario:
    try:
        scenario = Scenario.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown field {path[-1]!r}; {nearest(str(path[-1]), _fields(path))}"
        else:
            given = "" if first["type"] in ("value_error", "missing") else f", not {first['input']!r}"
            said = f"{message[0].lower()}{message[1:]}{given}"
            field = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
            whole = first["type"] == "value_error" and isinstance(
                path[-1], int
            )  # of a table: it names its field itself
            message = said if whole else f"{field}: {said}"
            path = (*path, said.partition(":")[0]) if whole else path
        raise source.error(path, message) from None
    specs = tuple(_beside(source.file.parent, spec) for spec in scenario.straggler)
    scenario, network = scenario.model_copy(update={"straggler": specs}), scenario.network
    if network is None or network.matrix is None:
        return scenario
    found = network.model_copy(update={"matrix": str(source.file.parent / network.matrix)})
    return scenario.model_copy(update={"network": found})


def _fields(path: tuple[int | str, ...]) -> list[str]:
    parts: dict[str, type[_Part]] = {"network": Network, "crash": Crash, "partition": Partition}
    where = parts.get(str(path[0]), Scenario) if len(path) > 1 else Scenario
    return list(where.model_fields)
