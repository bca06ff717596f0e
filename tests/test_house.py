"""The house rules that no linter holds: sizes, names, and that documents say what is true."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Grapevine

ROOT = Path(__file__).parents[1]
SOURCES = [
    p for folder in ("peer", "topology", "docker") for p in (ROOT / folder).rglob("*.py") if "wire" not in p.parts
]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 430
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or node.lineno) - node.lineno <= 80, node.name


def test_no_name_that_says_nothing() -> None:
    for path in SOURCES:
        assert not re.search(r"(utils?|helpers?|common|misc|manager|handler)$", path.stem), path


def test_the_network_is_never_unpickled() -> None:
    for path in SOURCES:
        assert not re.search(r"^\s*(import|from) pickle|torch\.load\(", path.read_text(), re.MULTILINE), path


def test_docs_link_to_what_exists() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_option_in_the_readme_exists() -> None:
    from peer.config import Config, flag

    known = {flag(name) for name in Config.model_fields} | {"--config", "--json", "--address", "--scale", "--no-deps"}
    for source in ("bench/straggler_table.py", "bench/race.py", "bench/agreement.py", "peer/cli/app.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', (ROOT / source).read_text()))
    assert set(re.findall(r"(?<![\w-])--[a-z-]+[a-z]", README)) <= known


def test_every_exit_code_is_documented() -> None:
    from peer.exit_codes import ExitCode

    text = (ROOT / "docs" / "exit-codes.md").read_text()
    for code in ExitCode:
        assert f"| {int(code)} | {code.name} |" in text


def test_every_target_of_make_that_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {"test", "test-fast"}
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        named |= set(re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE))
    assert named <= targets


def test_the_fast_part_is_all_of_the_tests_but_the_slow_and_has_some_of_every_folder() -> None:
    """What `make -n` says that it would run; it needs no package."""
    lines, own = {}, {name: value for name, value in os.environ.items() if not re.match(r"M(AKE|FLAGS)", name)}
    for target in ("test", "test-fast"):
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, env=own, capture_output=True, text=True, timeout=30, check=True
        )
        lines[target] = [line for line in done.stdout.splitlines() if not re.search(r"python|touch", line)]
    assert lines["test"][:-1] == lines["test-fast"][:-1], "lint, types and contracts"
    assert lines["test-fast"][-1] == lines["test"][-1] + ' -m "not slow"'
    for folder in {path.parent for path in (ROOT / "tests").rglob("test_*.py")}:
        assert any("mark.slow" not in path.read_text() for path in folder.glob("test_*.py")), folder


def commands() -> list[list[str]]:
    """The `grapevine` lines of the README, as words."""
    lines = re.findall(r"^grapevine (.+)$", README, re.MULTILINE)
    return [line.split("#")[0].split() for line in lines]


@pytest.mark.processes
@pytest.mark.parametrize("words", [c for c in commands() if c[0] == "up"], ids=" ".join)
def test_the_cluster_commands_of_the_readme_run(
    words: list[str], grapevine: Grapevine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For three rounds; four peers where the command does not say how many."""
    monkeypatch.chdir(ROOT)
    done = grapevine(*words, *(() if "--peers" in words else ("--peers", "4")), "--max-rounds", "3")
    assert done.code == 0, done.err
    assert "wall time" in done.out


@pytest.mark.parametrize(
    "words", [c for c in commands() if c[0] in ("plan", "init", "simulate", "compare")], ids=" ".join
)
def test_the_commands_of_the_readme_that_start_no_peers_run(
    words: list[str], grapevine: Grapevine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings for three rounds."""
    monkeypatch.chdir(tmp_path)
    done = grapevine(*words, *(["--max-rounds", "3"] if words[0] in ("simulate", "compare") else []))
    assert done.code == 0, done.err


@pytest.mark.parametrize("words", [c for c in commands() if c[0] in ("peer", "status", "top")], ids=" ".join)
def test_the_commands_of_the_readme_that_need_others_miss_them(
    words: list[str], grapevine: Grapevine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With loopback addresses: nobody else is there, or the id is not among the two of the example."""
    (tmp_path / "peer.toml").write_text(toml_of_the_readme().replace("10.0.0.", "127.0.0."))
    words = [word.replace("10.0.0.", "127.0.0.").replace("HOST:PORT", "127.0.0.1:1") for word in words]
    if words[0] == "peer":
        words += ["--start-timeout", "0.3", "--metrics-port", "-1"]
    monkeypatch.chdir(tmp_path)
    done = grapevine(*words)
    assert done.code == (2 if "3" in words else 4), done.err
    assert "Traceback" not in done.err


def toml_of_the_readme() -> str:
    found = re.search(r"```toml\n(.+?)```", README, re.DOTALL)
    assert found
    return found[1]
