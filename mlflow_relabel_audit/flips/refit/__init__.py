"""Models refitted with relabelled rows, many at once, each until the sign of its margin is proved."""
