"""Files on disk become samples and clips here: loaders of benchmarks, readers of media, checks of both."""
