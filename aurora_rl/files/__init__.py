"""Safe files: checked reading, atomic writing, journals, fingerprints, and locks of outputs."""
