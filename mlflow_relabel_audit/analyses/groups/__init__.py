"""Groups of rows: who is in them, their figures, and whose labels their predictions rest on."""
