"""How files are read, written whole, kept as a journal, and held by one run at a time."""
