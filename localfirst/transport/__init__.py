"""Sockets, processes and files: the only rooms with side effects at this level."""
