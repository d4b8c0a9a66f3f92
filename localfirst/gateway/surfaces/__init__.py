"""One file a surface: decode, ask the runtime, encode."""
