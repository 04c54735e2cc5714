"""From files on disk to samples and clips: benchmarks, media, and the synthetic benchmark."""
