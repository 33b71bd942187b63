"""Training: what recipes share. Plugins may call everything that these modules name in public."""
