"""The house rules that no linter holds: sizes, names, and that documents say what is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [p for folder in ("peer", "topology") for p in (ROOT / folder).rglob("*.py") if "wire" not in p.parts]
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

    known = {flag(name) for name in Config.model_fields} | {"--config", "--json", "--address"}
    for source in ("bench/straggler_table.py", "bench/race.py", "bench/agreement.py", "peer/cli/app.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', (ROOT / source).read_text()))
    assert set(re.findall(r"(?<![\w-])--[a-z-]+[a-z]", README)) <= known


def test_every_exit_code_is_documented() -> None:
    from peer.exit_codes import ExitCode

    text = (ROOT / "docs" / "exit-codes.md").read_text()
    for code in ExitCode:
        assert f"| {int(code)} | {code.name} |" in text


def commands() -> list[list[str]]:
    """The `grapevine` lines of the README, as words."""
    lines = re.findall(r"^grapevine (.+)$", README, re.MULTILINE)
    return [line.split("#")[0].split() for line in lines]


@pytest.mark.processes
@pytest.mark.parametrize("words", [c for c in commands() if c[0] == "up"], ids=" ".join)
def test_the_cluster_commands_of_the_readme_run(words: list[str]) -> None:
    """For three rounds."""
    limited = [sys.executable, "-m", "peer", *words, "--max-rounds", "3"]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=55, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "wall time" in done.stdout


@pytest.mark.parametrize(
    "words", [c for c in commands() if c[0] in ("plan", "init", "simulate", "compare")], ids=" ".join
)
def test_the_commands_of_the_readme_that_start_no_peers_run(words: list[str], tmp_path: Path) -> None:
    done = typed(words, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [c for c in commands() if c[0] in ("peer", "status")], ids=" ".join)
def test_the_commands_of_the_readme_that_need_others_miss_them(words: list[str], tmp_path: Path) -> None:
    """With loopback addresses: nobody else is there, or the id is not among the two of the example."""
    (tmp_path / "peer.toml").write_text(toml_of_the_readme().replace("10.0.0.", "127.0.0."))
    words = [word.replace("10.0.0.", "127.0.0.").replace("HOST:PORT", "127.0.0.1:1") for word in words]
    if words[0] == "peer":
        words += ["--start-timeout", "0.3", "--metrics-port", "-1"]
    done = typed(words, tmp_path)
    assert done.returncode == (2 if "3" in words else 4), done.stderr
    assert "Traceback" not in done.stderr


def typed(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "peer", *words], capture_output=True, text=True, timeout=55, check=False, cwd=folder
    )


def toml_of_the_readme() -> str:
    found = re.search(r"```toml\n(.+?)```", README, re.DOTALL)
    assert found
    return found[1]
