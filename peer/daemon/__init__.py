"""The asyncio host of one peer: it plays the score with threads and a transport.

conversation.py  what is heard and said: control words, links, who is alive
player.py        carries out the effects of a round
counts.py        its metrics: what is counted as it happens
readings.py      and what is read at a scrape
lag.py           how late the event loop is
evaluation.py    the peer's own model, judged on the test set
peer.py          one peer, put together; start, run, drain, stop
process.py       a peer as a process: uvloop, signals, exit code
"""
