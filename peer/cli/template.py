"""`grapevine init`: a commented TOML config, generated from the fields of `Config`."""

from __future__ import annotations

import json
from pathlib import Path

from peer.cli.options import ALIKE, PANELS, described
from peer.config import Config, ConfigError

#: A task may have defaults of its own for these, so the template does not set them.
FROM_TASK = ("batch_size", "chunks", "lr", "optimizer")

HEADER = """\
# Configuration of grapevine, for `grapevine up --config FILE` and `grapevine peer --config FILE`.
# Every option is here at its default; lines that start with # are off. The command line and GRAPEVINE_* variables win over this file.
# [alike]: must be equal on all peers; links check it.
"""


def template() -> str:
    """The text of the config. Options without a default are commented out."""
    lines = [HEADER]
    for title, names in PANELS.items():
        lines.append(f"# --- {title.lower()} ---\n")
        for name in names:
            field = Config.model_fields[name]
            lines.append(f"# {described(name)}{ALIKE if (field.description or '').endswith(ALIKE) else ''}")
            off = "# " if field.default is None or name in FROM_TASK else ""
            lines.append(f"{off}{name} = {'...' if field.default is None else _toml(field.default)}\n")
    return "\n".join(lines)


def write_template(path: Path, *, force: bool) -> None:
    """Raises ConfigError if the file is there already, or can't be written."""
    try:
        with path.open("w" if force else "x") as file:
            file.write(template())
    except FileExistsError:
        raise ConfigError(f"{path} exists already; --force overwrites it") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(json.dumps, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return str(value)
