"""One declaration per option; command line > environment > file > the task's default > default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from peer.assembly import make_schedule
from peer.cli.options import PANELS
from peer.cli.template import template, write_template
from peer.config import Config, ConfigError, alike, load, validated
from peer.gossip.algorithms import ALGORITHMS
from topology.suggestion import nearest


def test_the_sources_win_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "grapevine.toml"
    file.write_text('lr = 0.3\nchunks = 4\nseed = 3\nstraggler = ["0=4x", "1=2x"]\n')
    config = load(
        {"lr": 0.5},
        {"GRAPEVINE_LR": "0.4", "GRAPEVINE_CHUNKS": "2", "HOME": "/"},
        file,
        lambda task: {"alpha": 0.9, "lr": 9.0},
    )
    assert (config.lr, config.chunks, config.seed, config.alpha) == (0.5, 2, 3, 0.9)
    assert config.straggler == ("0=4x", "1=2x")
    assert load({}, {"GRAPEVINE_STRAGGLER": "0=4x; 1=2x"}).straggler == ("0=4x", "1=2x")


def test_a_task_is_asked_for_its_defaults_before_anything_is_validated(tmp_path: Path) -> None:
    """36 samples are not 8 chunks, but they are 4; the task that says 4 may be named by any source."""
    file = tmp_path / "grapevine.toml"
    file.write_text('task = "mine"\nbatch_size = 36\n')
    asked: list[str] = []

    def defaults_of(task: str) -> dict[str, object]:
        asked.append(task)
        return {"chunks": 4, "batch_size": 64}

    config = load({}, {}, file, defaults_of)
    assert (config.chunks, config.batch_size, asked) == (4, 36, ["mine"])
    assert load({"task": "yours"}, {"GRAPEVINE_TASK": "theirs"}, file, defaults_of).task == asked[-1] == "yours"
    with pytest.raises(ConfigError, match="--task: input should be a valid string, not 3"):
        load({"task": 3}, {}, None, defaults_of)


@pytest.mark.parametrize(
    ("word", "valid", "sentence"),
    [
        ("rign", ["ring", "torus"], "did you mean ring?"),
        ("RING", ["ring", "torus"], "did you mean ring?"),
        ("countin", ["Counting"], "did you mean Counting?"),
        ("zzz", ["ring", "torus"], "valid are ring, torus"),
    ],
)
def test_the_nearest_valid_name_is_suggested(word: str, valid: list[str], sentence: str) -> None:
    assert nearest(word, valid) == sentence


def test_torch_launchers_name_the_peer_but_our_own_prefix_wins() -> None:
    assert load({}, {"RANK": "3", "WORLD_SIZE": "5"}).peer == 3
    assert load({}, {"RANK": "3", "WORLD_SIZE": "5"}).peers == 5
    assert load({}, {"RANK": "3", "GRAPEVINE_PEER": "1"}).peer == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("lr = ", "not valid TOML"),
        ("chunk = 3", "unknown option 'chunk'; did you mean chunks"),
        ("lr = 0", "--lr: input should be greater than 0, not 0"),
        ("algorithm = 'ring-allreduce'", "did you mean ring-all-reduce"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=sentence) as error:
        load({}, {}, file)
    assert "\n" not in str(error.value).strip()


def test_a_missing_file_and_an_unknown_variable_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="grapevine init"):
        load({}, {}, tmp_path / "no.toml")
    with pytest.raises(ConfigError, match="did you mean GRAPEVINE_CLOSING"):
        load({}, {"GRAPEVINE_CLOSINGS": "first"})


@pytest.mark.parametrize("listen", [":0", "7000", "127.0.0.1:", "host:99999", "host:x"])
def test_where_to_listen_has_a_host_and_a_port(listen: str) -> None:
    with pytest.raises(ConfigError, match="--listen: write HOST:PORT"):
        validated({"listen": listen})


def test_a_gpu_is_for_the_trainer_in_a_thread() -> None:
    assert validated({"device": "cuda"}).device == "cuda"
    with pytest.raises(ConfigError, match="--device: a trainer in a process of its own computes on the CPU"):
        validated({"device": "cuda", "trainer": "process"})


def test_the_template_has_every_option_at_its_default(tmp_path: Path) -> None:
    values = tomllib.loads(template())
    assert Config.model_validate(values) == validated({})
    for name in Config.model_fields:
        assert f"{name} = " in template()
    path = tmp_path / "grapevine.toml"
    write_template(path, force=False)
    assert load({}, {}, path) == validated({})
    with pytest.raises(ConfigError, match="exists already"):
        write_template(path, force=False)
    write_template(path, force=True)
    assert max(map(len, template().splitlines())) <= 80


@pytest.mark.parametrize(
    ("algorithm", "line"), [*((name, "peers = 8") for name in ALGORITHMS), ("sync-sgd", "backup_workers = 1")]
)
def test_whoever_changes_one_line_of_the_template_is_not_refused_for_the_others(algorithm: str, line: str) -> None:
    name = line.partition(" ")[0]
    changed = re.sub(rf"(?m)^{name} = .*$", line, template()).replace('= "dpsgd"', f'= "{algorithm}"')
    config = validated(tomllib.loads(changed))
    assert (config.algorithm, make_schedule(config).num_peers) == (algorithm, 8)


def test_every_option_has_a_panel_a_description_and_a_place() -> None:
    assert sorted(name for names in PANELS.values() for name in names) == sorted(Config.model_fields)
    for name, field in Config.model_fields.items():
        assert field.description, name


def test_what_peers_must_agree_on() -> None:
    assert {"algorithm", "lr", "optimizer", "closing", "weighting", "seed", "task", "partition"} <= set(
        alike(validated({}))
    )
    assert not {"peer", "listen", "addresses", "report", "straggler", "log_level", "batch_size"} & set(
        alike(validated({}))
    )


FROZEN = """
addresses algorithm alpha backup_workers base_k batch_size budget chunk_seconds chunks closing consensus_step
data_plane data_port deadline_mads degree device eval_every head head_computes in_flight listen local_steps log_format
log_level lr max_rounds max_seconds metrics_eval_every metrics_port mixing nonfinite_limit optimizer outer_lr
outer_momentum partition peer peers preset probability quorum radius random_graph_every reflection report
round_deadline round_timeout run scenario seed simulate_staleness staleness_aware_lr start_timeout straggler
target_loss task topology tracing trainer weighting wire_dtype
"""


def test_the_set_of_options_is_an_interface() -> None:
    """An option is added or taken away on purpose, here as well as in the CHANGELOG."""
    assert sorted(Config.model_fields) == FROZEN.split()
