"""N daemons as processes on this machine, watched from outside.

forkserver.py  the process that all peers are forked from
frozen.py    its last import
child.py     one peer in a forked process, on a leash
launcher.py  starts, introduces and stops the children
observer.py  fetches models over gRPC and evaluates their mean; slows nobody
live.py      the live view and the summary in the terminal
up.py        `grapevine up`, put together
"""
