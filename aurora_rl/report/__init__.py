"""HTML pages of a training, of scores and of comparisons: one kit of sections, charts, clips and templates."""
