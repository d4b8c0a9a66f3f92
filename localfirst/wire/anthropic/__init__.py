"""Anthropic's Messages dialect, both ways."""
