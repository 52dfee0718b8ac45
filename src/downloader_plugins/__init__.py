"""The built-in backends and storages, found through the same entry points as any other plugin."""
