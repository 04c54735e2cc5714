"""A task says what a model is asked, what it is trained to say, and how its completion is read back."""
