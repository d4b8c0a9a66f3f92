"""What runs a model here: Ollama, the embedded llama.cpp, and their supervisor."""
