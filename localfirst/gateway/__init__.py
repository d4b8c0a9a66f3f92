"""The server: one door, three surfaces."""
