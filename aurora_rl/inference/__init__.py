"""From a clip and references to chains of thought and masks, and to the videos and files that show them."""
