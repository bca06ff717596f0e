"""What a peer serves to browsers and scrapers, on the peer's own event loop.

server.py   the addresses, the bounds, the beginning and the end
streams.py  open event streams: the newest update for each browser, never a queue
picture.py  what the page is told, as JSON
page.py     the page itself: one file that needs nothing else
"""
