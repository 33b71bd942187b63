"""Files of rows in any format, read one row at a time: for batch jobs and training data."""
