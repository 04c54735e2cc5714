"""Tools that a model may call on a clip: they measure it, and answer in words."""
