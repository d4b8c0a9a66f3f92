"""Gemini's native dialect: what backends send to it and read from it; no surface speaks it."""
