"""The command line: `grapevine up | peer | plan | status | init`.

options.py derives the options from the config's fields; the other modules have one command each.
"""

from peer.cli.app import main

__all__ = ["main"]
