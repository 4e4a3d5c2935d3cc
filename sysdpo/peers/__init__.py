"""Other ways to align a compound system, each with its own library or its loss restated: rows of `experiment=peers`."""
