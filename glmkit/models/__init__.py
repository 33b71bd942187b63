"""The architectures, in plain torch: one file each, bottom-up."""
