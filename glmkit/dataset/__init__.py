"""Training data: files in the formats that people have, read as one kind of sample."""
