"""What networks start from: (network, source, info) -> network, one file each."""
