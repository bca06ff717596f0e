"""Writes the dashboards: `make dashboards`, or PYTHONPATH=docker/grafana python -m dashboards."""

from __future__ import annotations

from dashboards import FOLDER, rendered


def main() -> None:
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
