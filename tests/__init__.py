"""One thread for each process that computes, the processes that tests start included, as peers do it. Before anything imports torch: the
threads of several workers on two cores spin while they wait for each other, which costs some tests eight times their processor time."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
