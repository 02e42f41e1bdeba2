"""Tree shapes: how candidate tokens are arranged below the root. One file per way of finding a shape."""
