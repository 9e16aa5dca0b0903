"""Findings: claims about the recipe, tried with seeds and error bars, and the page that says what came of them."""
