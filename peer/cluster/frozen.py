"""The last module that the forkserver imports: what was imported before it is no garbage, and never will be.

Frozen, the collector of a peer does not walk through torch's half a million objects, which would also copy the pages that the peers
share, and the end of the server does not take a second of collecting.
"""

import gc

gc.collect()
gc.freeze()
