"""The asyncio host of one peer: it plays the score with threads and a transport.

conversation.py  what is heard and said: control words, links, who is alive
player.py        carries out the effects of a round
ledger.py        totals over the round reports
peer.py          one peer, put together; start, run, drain, stop
process.py       a peer as a process: uvloop, signals, exit code
"""
