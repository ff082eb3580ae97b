"""Studies: each file opens with the question it answers and writes a table and its raw numbers."""
