"""Networks: from a configuration block to a module that takes raw inputs, and its weights on disk."""
