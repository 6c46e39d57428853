"""From a suspect's answers to a verdict: scores, null distributions, decisions."""
