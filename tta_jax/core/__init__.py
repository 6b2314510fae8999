"""Pure functions of the mathematics, one equation each (docs/theory.md)."""
