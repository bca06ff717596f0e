"""What a run did, in numbers: folds over round reports, kept alike by the daemon and by the simulator."""
