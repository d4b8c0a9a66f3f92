"""Model files on disk: names, manifests, the store, registries, pulls."""
