"""Objects by the names that configs give them, and the new places of modules that have moved."""
