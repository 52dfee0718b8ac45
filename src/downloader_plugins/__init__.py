"""The built-in backends and storages; they come through the same entry points as a stranger's."""
