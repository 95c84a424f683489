"""What a run trains on: the corpus and its splits, prepared files, SFT examples, samples that are too long."""
