"""The network: presets (plain numbers), the supernet, and the plain subnet that is left when a path is fixed."""
