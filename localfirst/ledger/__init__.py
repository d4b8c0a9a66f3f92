"""What happened: attempts, cooldowns and usage in SQLite."""
