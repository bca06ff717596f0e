"""What a run is refused for at its start: options that an algorithm is not correct with, and options that would mean nothing.

Which algorithm that is, its traits say (peer/gossip/algorithm.py); no algorithm is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from peer.config import Config, ConfigError, flag
from peer.gossip.algorithm import Algorithm
from peer.gossip.algorithms import ALGORITHMS
from peer.gossip.central import DIGIT
from peer.gossip.wire_dtype import WireDtype
from peer.methods import usual


@dataclass(frozen=True, slots=True)
class Own:
    """An option of some algorithms. why: of the others, half a sentence."""

    takes: Callable[[type[Algorithm]], bool]
    why: str


def _leads_rounds(kind: type[Algorithm]) -> bool:
    return kind.has_head and kind.has_rounds


def _leads_without_rounds(kind: type[Algorithm]) -> bool:
    return kind.has_head and not kind.has_rounds


OWN_OPTIONS: Mapping[str, Own] = {
    "head": Own(lambda kind: kind.has_head, "where no peer alone has the model"),
    "head_computes": Own(_leads_rounds, "where no head has rounds"),
    "backup_workers": Own(_leads_rounds, "where no head steps with the gradients of a round"),
    "simulate_staleness": Own(_leads_without_rounds, "where no head takes gradients as they come"),
    "staleness_aware_lr": Own(_leads_without_rounds, "where no head takes gradients as they come"),
    "mixing": Own(lambda kind: kind.takes_mixing, "which mixes by no weights of a graph, or by its own"),
    "budget": Own(lambda kind: kind.takes_budget, "which has no matchings that talk in some rounds only"),
    "outer_lr": Own(lambda kind: kind.outer is not None, "which has no outer step"),
    "outer_momentum": Own(lambda kind: kind.outer is not None, "which has no outer step"),
}
#: Options of a closing policy.
OF_CLOSING = {"quorum": "quorum", "round_deadline": "deadline", "deadline_mads": "deadline"}


def wire_dtype(config: Config) -> WireDtype:
    """The config's, or else the first that the algorithm takes."""
    return WireDtype.parse(config.wire_dtype or ALGORITHMS[config.algorithm].wire_dtypes[0])


def keeps_replicas(config: Config) -> bool:
    """Whether vectors travel as differences to what the other end of an edge knows."""
    return wire_dtype(config).keeps_replicas and ALGORITHMS[config.algorithm].keeps_replicas


def idle_options(config: Config) -> dict[str, str]:
    """The options that are given, that is not what stands there without a word, and mean nothing, each with a sentence that says why."""
    kind, usually = ALGORITHMS[config.algorithm], usual({"algorithm": config.algorithm})
    fields = Config.model_fields

    def is_given(name: str) -> bool:
        return bool(getattr(config, name) != usually.get(name, fields[name].default))

    idle = {
        name: f"{flag(name)}: it is for {_names(own.takes)}, and means nothing with {config.algorithm}, {own.why}"
        for name, own in OWN_OPTIONS.items()
        if not own.takes(kind) and is_given(name)
    }
    for name, closing in OF_CLOSING.items():
        if config.closing != closing and is_given(name):
            idle[name] = f"{flag(name)}: it is for --closing {closing}, and means nothing with {config.closing}"
    if is_given("consensus_step") and not (keeps_replicas(config) or kind.takes_consensus_step):
        idle["consensus_step"] = (
            f"--consensus-step: {config.algorithm} with --wire-dtype {wire_dtype(config)} has none; it is for "
            f"{_names(lambda kind: kind.takes_consensus_step)}, and for {_names(_can_keep_replicas)} with int8 or top-k"
        )
    return idle


def _can_keep_replicas(kind: type[Algorithm]) -> bool:
    return kind.keeps_replicas and any(WireDtype(name).keeps_replicas for name in kind.wire_dtypes)


def _names(takes: Callable[[type[Algorithm]], bool]) -> str:
    return joined(name for name, kind in ALGORITHMS.items() if takes(kind))


def joined(names: Iterable[str]) -> str:
    """a, b and c."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def check_method(config: Config) -> None:
    """Raises ConfigError if the algorithm is not correct with the other options, or takes no notice of one, with the reason."""
    _check_head(config)
    for sentence in idle_options(config).values():  # first: what another method is for may imply a closing
        raise ConfigError(sentence)
    _check_rounds(config)
    if config.round_deadline is not None and config.deadline_mads != Config.model_fields["deadline_mads"].default:
        raise ConfigError(
            "--deadline-mads: with --round-deadline a round lasts so long, whatever others took; leave it out"
        )
    kind = ALGORITHMS[config.algorithm]
    if config.local_steps > 1 and kind.why_no_local_steps:
        raise ConfigError(
            f"--local-steps: {config.algorithm} makes one step between two exchanges: {kind.why_no_local_steps}; leave it at 1"
        )
    samples = config.batch_size * config.local_steps
    if samples > DIGIT and (kind.sums_gradients or kind.has_head):
        name = "local_steps" if config.local_steps > 1 else "batch_size"
        raise ConfigError(
            f"{flag(name)}: a round would have {samples:,} samples of a peer, and {config.algorithm} counts to {DIGIT:,}; lower it"
        )
    if config.random_graph_every and kind.why_no_random_graphs:
        raise ConfigError(
            f"--random-graph-every: {config.algorithm} can't draw random graphs: {kind.why_no_random_graphs}; leave it at 0"
        )
    if config.optimizer != "sgd" and kind.why_plain_sgd:
        raise ConfigError(
            f"--optimizer: {config.algorithm} can't use {config.optimizer}: {kind.why_plain_sgd}; use sgd"
        )


def _check_rounds(config: Config) -> None:
    """The closing policy suits the algorithm."""
    has_rounds = ALGORITHMS[config.algorithm].has_rounds
    if has_rounds and config.closing == "none":
        without = joined(name for name, kind in ALGORITHMS.items() if not kind.has_rounds)
        raise ConfigError(f"--closing: {config.algorithm} has rounds, and they must end; none is for {without}")
    if not has_rounds and config.closing != "none":
        raise ConfigError(
            f"--closing: {config.algorithm} has no rounds that could be closed; use --closing none, or leave it out"
        )
    if not has_rounds and config.in_flight != "carry":
        raise ConfigError(
            f"--in-flight: a round of {config.algorithm} ends when its own quota is done, with nothing in flight; leave it out"
        )


def _check_head(config: Config) -> None:
    """There is such a head, and its options do not contradict each other."""
    kind = ALGORITHMS[config.algorithm]
    if kind.has_head and config.head >= config.peers:
        raise ConfigError(
            f"--head: there is no peer {config.head} among {config.peers}; ids go from 0 to {config.peers - 1}"
        )
    if not (config.backup_workers and OWN_OPTIONS["backup_workers"].takes(kind)):
        return
    if config.closing != "barrier":
        raise ConfigError(
            f"--backup-workers: with --closing {config.closing} nobody waits for the last gradients anyhow; use --closing barrier"
        )
    if config.in_flight == "carry":
        raise ConfigError(
            "--backup-workers: a chunk that is carried over is a gradient of an older x, which must not count; use --in-flight redo"
        )
    if config.backup_workers >= config.num_computing:
        raise ConfigError(
            f"--backup-workers: {config.backup_workers} of {config.num_computing} computing peers leave nobody to step with"
        )
