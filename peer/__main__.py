"""`python -m peer` and `grapevine`."""

from __future__ import annotations

import os

# Before numpy is imported: solving a schedule is many small factorisations, for which a pool of spinning threads is slower (up to 20
# times on a loaded machine) than one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from peer.cli import main

if __name__ == "__main__":
    main()
