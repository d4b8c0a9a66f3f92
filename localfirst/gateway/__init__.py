"""The server: a closed door, three faithful surfaces, and a short way from upstream to client."""
