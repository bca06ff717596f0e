"""`grapevine compare`: the same training under several algorithms, closing policies and scenarios, side by side."""
