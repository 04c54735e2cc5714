"""Training-free segmentation by agents that a chat endpoint plays, after MAR3 (arXiv 2603.27706)."""
