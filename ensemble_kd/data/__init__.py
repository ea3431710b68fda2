"""Sources, splits, tokenising, augmentation, and the arrays on disk that every later stage reads."""
