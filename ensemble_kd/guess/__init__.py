"""A configuration for any data: what the files hold, what to predict, which recipe, within which time."""
