"""`grapevine init`: a commented TOML config, generated from the fields of `Config`."""

from __future__ import annotations

import itertools
import json
import textwrap
from pathlib import Path

from peer.cli.options import ALIKE, PANELS, described
from peer.config import Config, ConfigError
from peer.methods import BACKUP_DEFAULTS, DEFAULTS_OF

#: A task, an algorithm or another option may bring other defaults for these, so the template does not set them.
BROUGHT = {
    "batch_size",
    "chunks",
    "lr",
    "optimizer",
    "listen",
    *BACKUP_DEFAULTS,
    *itertools.chain(*DEFAULTS_OF.values()),
}
COLUMNS = 80

HEADER = """\
# Configuration of grapevine, for `grapevine up --config FILE` and `grapevine
# peer --config FILE`. Every option is here at its default. Lines that begin
# with # are off: options that have no default, and those for which a task or an
# algorithm may bring its own. The command line and GRAPEVINE_* variables win
# over this file. [alike]: must be equal on all peers; links check it.
"""


def template() -> str:
    """The text of the config. Options without a default are commented out."""
    lines = [HEADER]
    for title, names in PANELS.items():
        lines.append(f"# --- {title.lower()} ---\n")
        for name in names:
            field = Config.model_fields[name]
            told = described(name) + (ALIKE if (field.description or "").endswith(ALIKE) else "")
            lines += textwrap.wrap(told, COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
            off = "# " if field.default is None or name in BROUGHT else ""
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
