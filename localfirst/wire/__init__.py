"""Bytes and events, without I/O: framing and the four dialects."""
