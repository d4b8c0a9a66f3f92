"""OpenAI's dialect: chat completions both ways, completions, responses and embeddings."""
