"""Public image data sets as one checked `.npz` file each: where they come from, how they are read, what they must hold."""
