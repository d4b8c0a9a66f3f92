"""What each surface does with a request: which codec, which shape, which answer."""
