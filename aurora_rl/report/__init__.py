"""HTML pages of a training run and of scores: charts, clips, templates."""
