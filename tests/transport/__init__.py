"""Tests of peer.transport."""
