"""Grapevine: a peer-to-peer gossip training daemon that never waits for a straggler."""

__version__ = "0.1.0"
