"""Claims that an examiner can check who trusts neither side: commitment, bundle, audit."""
