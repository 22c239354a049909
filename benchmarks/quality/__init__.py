"""The proof that the recipe works: the table of BitDistill (arXiv 2510.13998) at sizes that fit, and what it takes in general text."""
