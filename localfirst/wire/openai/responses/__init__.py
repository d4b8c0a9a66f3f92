"""OpenAI's Responses surface, stateless: nothing is stored, nothing runs in the background."""
