"""Ollama's native dialect: chat and generate both ways, and embeddings."""
