"""Scores of a model, or of saved masks: records of rows, measures, tables, intervals and comparisons."""
