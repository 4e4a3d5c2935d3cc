"""Section 3 and equations 6 and 9 checked on systems small enough for exact expectations."""
