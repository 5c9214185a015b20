"""Graphs to page: the static bundle, a server, a browser that runs it, and its way to a host."""
