"""The virtual-time host: plays the same score as the daemon for hundreds or thousands of peers in one process.

Algorithm, closing policy, words, delivery and schedule are the daemon's own code; this floor brings what the daemon takes from the
world: time, devices and a network. What it does not model is said in docs/simulator.md.
"""
