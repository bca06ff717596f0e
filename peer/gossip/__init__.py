"""The protocol without I/O: no clock, socket, thread or log. Time is an argument."""
