"""The miniature of Table 2: a made-up world of small tasks, for language models of about a million weights."""
